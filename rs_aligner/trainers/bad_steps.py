"""Optimizer steps whose loss or gradient is not finite: not applied, written down, and not too many in a row.

One such batch is bad luck, or a row that should be looked at: the training goes on with the next, and the
rows are in `bad_steps/step_000012.jsonl` of the run's folder. Several in a row mean that nothing is learnt
any more: the run saves and ends. Left out on purpose: lowering the learning rate, which is the user's
decision.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rs_aligner.files import write_whole
from rs_aligner.rollout import Group, Score, TrainingRow
from rs_aligner.trainers.protocols import Stats

_logger = logging.getLogger("rs_aligner")
SHOWN_IDS = 5


class BadSteps:
    """Those of a run.

    Args:
        folder: of the run.
        most: in a row, until the run ends.
        writes: whether this is the first rank, which writes them down.
    """

    def __init__(self, folder: Path, most: int, *, writes: bool) -> None:
        self._folder, self._most, self._writes = folder / "bad_steps", most, writes
        self._in_a_row = 0
        self._last = ""
        self.are_too_many = False

    def look(
        self, step: int, stats: Sequence[Stats], told: Callable[[Any], Mapping[str, Any]] = asdict
    ) -> None:
        """Count those of a training step, and write their rows down.

        Args:
            step: of the loop.
            stats: of its optimizer steps, in order.
            told: what is written of a row.
        """
        for one in stats:
            self._in_a_row = self._in_a_row + 1 if one.skipped else 0
            self.are_too_many |= self._in_a_row >= self._most
        bad = [(number, one) for number, one in enumerate(stats, start=1) if one.skipped]
        if not bad:
            return
        path = self._folder / f"step_{step:06d}.jsonl"
        rows = [
            {"step": step, "optimizer_step": number, "loss": str(one.loss), **told(row)}
            for number, one in bad
            for row in one.skipped
        ]
        losses = ", ".join(sorted({str(one.loss) for _, one in bad}))
        ids = list(dict.fromkeys(str(row["id"]) for row in rows if "id" in row))
        shown = f" ({', '.join(ids[:SHOWN_IDS])}{', ...' if len(ids) > SHOWN_IDS else ''})" if ids else ""
        self._last = f"{path}: {len(rows)} rows{shown}, loss {losses}"
        if self._writes:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(row).encode() + b"\n" for row in rows))
            _logger.warning(
                "step %d: %d of %d optimizer steps are left out, since loss or gradient is not finite; %s",
                *(step, len(bad), len(stats), self._last),
            )

    def error(self, step: int, key: str) -> FloatingPointError:
        """What ends a run with too many of them.

        Args:
            step: the last one.
            key: of the config, that says how many are too many.
        """
        return FloatingPointError(
            f"step {step}: {self._most} optimizer steps in a row had a loss or gradient that is not finite "
            f"and were not applied ({key}). A lower model.optim.lr or gradient_clip_val may help. The last "
            f"rows: {self._last}"
        )

    def state_dict(self) -> int:
        """How many there were in a row; none where the run ended for them: whoever starts it again knows."""
        return 0 if self.are_too_many else self._in_a_row

    def load_state_dict(self, state: int) -> None:
        """Go on counting."""
        self._in_a_row = state


def told_by_groups(groups: Sequence[Group]) -> Callable[[TrainingRow], dict[str, Any]]:
    """What is written of a training row: its rollout and reward; a supervised one has no id."""
    places = {
        (group.prompt.token_ids, rollout.token_ids): (group, place)
        for group in groups
        for place, rollout in enumerate(group.rollouts)
    }

    def told(row: TrainingRow) -> dict[str, Any]:
        found = places.get((row.prompt, row.response))
        weight = row.weight if math.isfinite(row.weight) else str(row.weight)  # JSON has no NaN
        tokens = {"prompt_ids": list(row.prompt), "response_ids": list(row.response), "weight": weight}
        if found is None:
            return {"supervised": True, **tokens}
        group, place = found
        rollout, score = group.rollouts[place], group.scores[place]
        return {
            "id": group.prompt.id,
            "index": rollout.index,
            "reward": score.reward if isinstance(score, Score) else None,
            "policy_version": rollout.policy_version,
            "prompt": group.prompt.text,
            "response": rollout.text,
            **tokens,
        }

    return told
