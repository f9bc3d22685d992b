"""A run that was never trained: its folder, by the project's own writers, with figures as one likes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rs_aligner.config import TrainRSConfig
from rs_aligner.config.changes import settings_of
from rs_aligner.record.attempts import Attempt
from rs_aligner.record.format import RunRecord
from rs_aligner.record.ledger import Ledger
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Selection
from rs_aligner.selection.result import selection_of

Scored = float | str | tuple[float, float]
"""Of a rollout: its score, why there is none, or its score and the watched judge's."""


def group(
    number: int,
    scores: Sequence[Scored],
    *,
    step: int = 1,
    name: str | None = None,
    lengths: Sequence[int] | None = None,
    text: str = "answer",
    version: int | None = None,
) -> Group:
    """A prompt with a rollout for each score."""
    prompt = Prompt(name or f"p{number}", f"prompt {number}", (1, 2), {"n": number}, row=number)
    rollouts = [
        Rollout(
            number,
            place,
            tuple(range(3, 3 + (lengths[place] if lengths else 2))),
            f"{text} {place}",
            "stop",
            step - 1 if version is None else version,
            log_probs=(),
        )
        for place in range(len(scores))
    ]
    pairs = [one if isinstance(one, tuple) else (one, None) for one in scores]
    judged = [Score(one) if not isinstance(one, str) else ScoreFailure(one) for one, _ in pairs]
    watched = [Score(one) for _, one in pairs if one is not None]
    return Group(prompt, rollouts, judged, list(watched))


def keeping(groups: Sequence[Group], kept: Sequence[Sequence[int]]) -> Selection:
    """The selection that keeps these places of each group."""
    reasons = [
        ["kept" if place in places else "not in the top n" for place in range(len(one.rollouts))]
        for one, places in zip(groups, kept, strict=True)
    ]
    return selection_of(kept, reasons)


def write_run(
    folder: Path,
    rows: Sequence[Mapping[str, float]] = (),
    *,
    command: str = "train_rs",
    state: str | None = "finished",
    reason: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A run's folder without rollouts; `add_step` and `add_look` bring them."""
    folder.mkdir(parents=True, exist_ok=True)
    RunRecord(command, attempts=1).write(folder)
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text("".join(lines))  # MetricsFile waits for the disk with each row
    if state is not None:
        last = int(rows[-1]["step"]) if rows else 0
        status = {"state": state, "step": last, "steps": 4, "heartbeat": time.time(), "reason": reason}
        (folder / "status.json").write_text(json.dumps(status))
    if config is not None:
        Attempt(settings_of(TrainRSConfig.model_validate(config)), {"the judge": "j1"}, number=1).write(
            folder / "config"
        )
    return folder


def add_step(
    folder: Path,
    step: int,
    groups: Sequence[Group],
    kept: Sequence[Sequence[int]],
    *,
    everything: bool = False,
) -> None:
    Ledger(folder / "rollouts").append(step, groups, keeping(groups, kept), everything=everything)


def add_look(folder: Path, step: int, groups: Sequence[Group]) -> None:
    Ledger(folder / "rollouts").append_held_out(step, groups)
