"""The record of every rollout, score and selection of a run, also the rejected.

One JSONL file a step, `rollouts/step_000001.jsonl`, one rollout a line, in (prompt, rollout) order. Each
line stands alone, prompt and metadata included: that repeats a prompt N times, and in return `grep`, `jq`
and pandas read a file as it is. A step is written whole or not at all. A step that is trained again after
a restart replaces its file.

A rollout of an earlier step is written again only where it is trained on again, so a pool that several steps
train on is there once, in the step that sampled it. Left out on purpose: compression.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.files import write_whole
from rs_aligner.precision import PRECISIONS, Precision
from rs_aligner.rollout import FinishReason, Group, Prompt, Rollout, Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which reading a ledger does not need

_FILE_NAME = re.compile(r"step_(\d{6,})\.jsonl")


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One rollout: what was asked, what came back, what the judge said and what became of it.

    Attributes:
        step: the training step, counted from 1.
        prompt_id: id of the prompt's data row.
        group: which prompt of the step, counted from 0 in data order.
        index: which of the prompt's rollouts, counted from 0.
        prompt: the text as fed to the policy.
        prompt_row: the prompt's place in the set of prompts; -1 where it has none.
        prompt_token_ids: the tokens as fed to the policy.
        response: the text without end tokens and end strings.
        token_ids: the response tokens, the ending token included.
        log_probs: log-probability of each, to nine digits (a float32 survives unchanged).
        finish_reason: `stop` or `length`.
        seed: what the rollout's randomness came from.
        policy_version: training steps of the policy that sampled it.
        reward: the score; None where the judge failed.
        components: named parts of the score, where the judge gave them.
        judge: fingerprint of the judge that gave it; empty where it offers none.
        failure: why there is no score; None where there is one.
        watched: the score of the judge that is only watched; None where there is none.
        kept: whether it was trained on.
        reason: why, or why not.
        metadata: the prompt's whole data row.
        reward_dtype: the type in which the judge gave the reward; bars are compared in it.
        by_design: whether it would have been sampled whatever others scored (`Rollout.by_design`).
    """

    step: int
    prompt_id: str
    group: int
    index: int
    prompt: str
    prompt_row: int
    prompt_token_ids: tuple[int, ...]
    response: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int
    policy_version: int
    reward: float | None
    components: dict[str, float]
    judge: str
    failure: str | None
    watched: float | None
    kept: bool
    reason: str
    metadata: dict[str, Any]
    reward_dtype: Precision = "float64"
    by_design: bool = True

    @property
    def score(self) -> Score | ScoreFailure:
        """The judge's answer as the rest of the package knows it."""
        if self.reward is None:
            return ScoreFailure(self.failure or "no reason recorded")
        return Score(self.reward, self.components, self.judge, self.reward_dtype)

    @property
    def as_prompt(self) -> Prompt:
        """The prompt; its place in the epoch's order is not recorded: nothing is sampled for it again."""
        return Prompt(
            self.prompt_id, self.prompt, self.prompt_token_ids, metadata=self.metadata, row=self.prompt_row
        )

    @property
    def as_rollout(self) -> Rollout:
        """The rollout as it was sampled."""
        return Rollout(
            group=self.group,
            index=self.index,
            token_ids=self.token_ids,
            text=self.response,
            finish_reason=self.finish_reason,
            policy_version=self.policy_version,
            seed=self.seed,
            log_probs=self.log_probs,
            by_design=self.by_design,
        )


class Ledger:
    """The ledger of a run: a folder of steps."""

    def __init__(self, folder: str | Path) -> None:
        """Opens the ledger in `folder`, making the folder where there is none."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def existing(cls, folder: str | Path) -> Ledger:
        """A ledger to read.

        Raises:
            ValueError: there is none.
        """
        if not any(_FILE_NAME.fullmatch(path.name) for path in Path(folder).glob("*")):
            raise ValueError(f"{folder} is not a ledger: it has no step_000001.jsonl or the like")
        return cls(folder)

    def append(
        self, step: int, groups: Sequence[Group], selection: Selection, *, everything: bool = False
    ) -> None:
        """Writes a step: one line per rollout, all of them or none.

        Args:
            step: counted from 1; a step that is there already is replaced.
            groups: in data order, each with a score or a failure for every rollout.
            selection: of these groups.
            everything: also the rollouts of earlier policies that are not kept.

        Raises:
            ValueError: the step is below 1, or groups, scores and selection differ in size.
        """
        if step < 1:
            raise ValueError(f"the ledger's steps count from 1, not {step}")
        rows = _rows(step, groups, selection)
        new = (row for row in rows if everything or row.kept or row.policy_version >= step - 1)
        write_whole(self._path(step), (_to_line(row) for row in new))

    def read(self, step: int) -> list[LedgerRow]:
        """Reads a step back, in (prompt, rollout) order.

        Raises:
            ValueError: the step is not there, or a line is not a row of a ledger (file and line named).
        """
        path = self._path(step)
        if not path.exists():
            raise ValueError(f"the ledger {self.folder} has no step {step}; it has {self.steps() or 'none'}")
        with path.open("rb") as file:
            return [_from_line(line, f"{path}:{number}") for number, line in enumerate(file, start=1)]

    def kept_until(self, step: int) -> list[LedgerRow]:
        """What was kept in the steps up to this one."""
        return [row for one in self.steps() if one <= step for row in self.read(one) if row.kept]

    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        matches = (_FILE_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def truncate_after(self, step: int) -> None:
        """Forgets the steps after `step`, which a run that resumes from an older checkpoint makes anew."""
        for later in reversed(self.steps()):  # the last first: a cut on the way leaves no gap
            if later > step:
                self._path(later).unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}.jsonl"


def _rows(step: int, groups: Sequence[Group], selection: Selection) -> Iterator[LedgerRow]:
    for number, (group, kept_N, reasons_N) in enumerate(selection.rows(groups)):
        for rollout, score, watched, kept, reason in zip(
            group.rollouts, group.scores, group.watched_scores(), kept_N, reasons_N, strict=True
        ):
            failure = score.reason if isinstance(score, ScoreFailure) else None
            yield LedgerRow(
                step=step,
                prompt_id=group.prompt.id,
                group=number,
                index=rollout.index,
                prompt=group.prompt.text,
                prompt_row=group.prompt.row,
                prompt_token_ids=group.prompt.token_ids,
                response=rollout.text,
                token_ids=rollout.token_ids,
                log_probs=tuple(float(f"{value:.9g}") for value in rollout.log_probs),
                finish_reason=rollout.finish_reason,
                seed=rollout.seed,
                policy_version=rollout.policy_version,
                reward=score.reward if isinstance(score, Score) else None,
                components=score.components if isinstance(score, Score) else {},
                judge=score.judge if isinstance(score, Score) else "",
                failure=failure,
                watched=watched.reward if isinstance(watched, Score) else None,
                kept=kept,
                reason=reason,
                metadata=group.prompt.metadata,
                by_design=rollout.by_design,
                reward_dtype=score.precision if isinstance(score, Score) else "float64",
            )


def groups_of(rows: Sequence[LedgerRow]) -> list[Group]:
    """The groups that some rows of a ledger came from, in the order in which they first appear."""
    groups: dict[tuple[int, int], Group] = {}
    for row in rows:
        group = groups.setdefault((row.step, row.group), Group(row.as_prompt, [], []))
        group.rollouts.append(row.as_rollout)
        group.scores.append(row.score)
        seen = ScoreFailure("not recorded") if row.watched is None else Score(row.watched)
        group.watched.append(seen)
    for group in groups.values():
        if not any(isinstance(seen, Score) for seen in group.watched):
            group.watched = []
    return list(groups.values())


def _to_line(row: LedgerRow) -> bytes:
    # Not dataclasses.asdict, which copies every list of tokens one by one.
    record = {field.name: getattr(row, field.name) for field in fields(row)}
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold: escape this line
        return json.dumps(record).encode() + b"\n"


def _from_line(line: bytes, place: str) -> LedgerRow:
    try:
        record = json.loads(line)
        for key in ("token_ids", "prompt_token_ids"):
            record[key] = tuple(record[key])
        # Nine digits tell which float32 it was, and a run that continues needs that number to the last bit.
        record["log_probs"] = tuple(array("f", record["log_probs"]))
        if record.get("reward_dtype", "float64") not in PRECISIONS:
            raise ValueError(f"reward_dtype is {record['reward_dtype']!r}")
        return LedgerRow(**record)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: not a row of a ledger ({error!r})") from error
