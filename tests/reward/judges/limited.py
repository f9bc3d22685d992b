"""Users' judges in processes of their own, for a test: made from a text, and none of them stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rs_aligner.config import JudgeConfig
from rs_aligner.reward.judges import load_judge
from rs_aligner.reward.judges.limit import LimitedJudge

Make = Callable[..., LimitedJudge]
"""Starts a judge: `make(time_limit=..., workers=..., **kwargs)`, the last its `judge.kwargs`."""


@contextmanager
def limited_judges(folder: Path, code: str, seconds: float) -> Iterator[Make]:
    """Judges of the function `judge` in `code`, with a time limit of `seconds` if none is given.

    All are closed at the end, and then no worker is left.
    """
    (folder / "judge.py").write_text(code)
    judges: list[LimitedJudge] = []

    def start(time_limit: float | None = seconds, workers: int = 1, **kwargs: Any) -> LimitedJudge:
        source = f"{folder}/judge.py:judge"
        judge = load_judge(
            JudgeConfig(function=source, kwargs=kwargs, time_limit=time_limit, workers=workers)
        )
        assert isinstance(judge, LimitedJudge)
        judges.append(judge)
        return judge

    yield start
    for judge in judges:
        judge.close()
    assert worker_processes() == []


def worker_processes(of: int | None = None) -> list[psutil.Process]:
    """The workers that a process has started; by default those of this one."""
    return [p for p in psutil.Process(of).children() if "judges.worker" in " ".join(p.cmdline())]
