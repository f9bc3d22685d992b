"""Judges of code for the tests, closed whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rs_aligner.reward.judges.base import BadSetting
from rs_aligner.reward.judges.code import CodeJudge
from tests.reward.judges.code.machine import python_of_all

Make = Callable[..., CodeJudge]


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    """Makes a judge; on machines without namespaces, root's own interpreter may be out of programs' reach."""
    judges: list[CodeJudge] = []

    def made(**settings: Any) -> CodeJudge:
        try:
            judge = CodeJudge(**settings)
        except BadSetting as error:
            if "library" not in str(error):
                raise
            judge = CodeJudge(**settings, python=python_of_all())
        judges.append(judge)
        return judge

    yield made
    for judge in judges:
        judge.close()


@pytest.fixture(scope="module")
def judge(make: Make) -> CodeJudge:
    """One that several tests share."""
    return make(time_limit=10.0)
