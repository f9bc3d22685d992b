"""How an instance of the served model learns from the first one where the judge is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytriton.proxy import communication

from rs_aligner.reward.server.serving import HANDSHAKE

pytestmark = pytest.mark.timeout(30)


def test_an_instance_that_asks_before_anybody_listens_asks_again() -> None:
    asked: list[tuple[Path, float]] = []

    def bound_but_not_listening(path: Path, seconds: float) -> dict[str, Any]:
        asked.append((path, seconds))
        if len(asked) < 4:
            raise ConnectionRefusedError
        return {"authkey": "x"}

    names: dict[str, Any] = {"get_config_from_handshake_server": bound_but_not_listening}
    exec(HANDSHAKE, names)
    assert names["get_config_from_handshake_server"](Path("handshake")) == {"authkey": "x"}
    assert asked == [(Path("handshake"), 60.0)] * 4


def test_the_name_that_is_amended_is_pytritons() -> None:
    assert callable(communication.get_config_from_handshake_server)
