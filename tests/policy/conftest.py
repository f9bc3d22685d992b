"""One process as a run of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rs_aligner.policy import runtime
from rs_aligner.policy.runtime import Runtime


@pytest.fixture(scope="module")
def rt() -> Iterator[Runtime]:
    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:
        yield rt
