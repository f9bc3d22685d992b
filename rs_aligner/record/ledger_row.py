"""A row of the ledger: one rollout, with what became of it.

Left out on purpose: the line that it is in a file (`ledger_line`), files and folders (`ledger`, `open_step`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rs_aligner.precision import Precision
from rs_aligner.rollout import FinishReason, Group, Prompt, Rollout, Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which reading a ledger does not need

Answer = Score | ScoreFailure

NOT_SELECTED = "not selected yet"
NOT_TRAINED = "the step was not trained"
HELD_OUT = "held out"
"""Reasons of rows that no selection has seen: of an open step, of a step whose judge failed, held out."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One rollout: what was asked, what came back, what the judge said and what became of it.

    Attributes:
        step: the training step, counted from 1; of a held-out rollout, the step behind which it was sampled.
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
        watched_failure: why the watched judge gave no score; None where it did, or where there is none.
        made_by: fingerprint of the settings that it was sampled and judged under; empty for none.
        num_rows: rows of the file that it stands in; 0 in a step that is still open.
        checksum: of the line before it (`files.checksum`).
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
    reward_dtype: Precision
    by_design: bool
    watched_failure: str | None
    made_by: str
    num_rows: int
    checksum: str = ""

    @property
    def score(self) -> Answer:
        """The judge's answer as the rest of the package knows it."""
        if self.reward is None:
            return ScoreFailure(self.failure or "no reason recorded")
        return Score(self.reward, self.components, self.judge, self.reward_dtype)

    @property
    def watched_score(self) -> Answer | None:
        """The watched judge's answer; None where there was no such judge."""
        if self.watched is not None:
            return Score(self.watched)
        return None if self.watched_failure is None else ScoreFailure(self.watched_failure)

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


class KeptRow(msgspec.Struct, frozen=True, gc=False):
    """What of a row is read where whole runs are: `LedgerRow`'s fields, and a tenth of its cost."""

    step: int
    prompt_id: str
    group: int
    index: int
    prompt_row: int
    response: str
    policy_version: int
    reward: float | None
    kept: bool
    reason: str
    made_by: str
    num_rows: int


class Judged(NamedTuple):
    """A rollout with the answers of the judge and of the watched one, if there is one."""

    rollout: Rollout
    score: Answer
    watched: Answer | None


class Stamp(NamedTuple):
    """What the rows of a file have in common: step, fingerprint of the settings, number of rows."""

    step: int
    made_by: str = ""
    num_rows: int = 0


def row_of(
    prompt: Prompt,
    judged: Judged,
    stamp: Stamp,
    *,
    kept: bool = False,
    reason: str = NOT_SELECTED,
    is_short: bool = True,
) -> LedgerRow:
    """The row of a rollout; its group is that of the rollout.

    `is_short` cuts log-probabilities to the nine digits that tell a float32, which takes most of the time.
    """
    rollout, score, watched = judged
    scored = score if isinstance(score, Score) else None
    return LedgerRow(
        step=stamp.step,
        prompt_id=prompt.id,
        group=rollout.group,
        index=rollout.index,
        prompt=prompt.text,
        prompt_row=prompt.row,
        prompt_token_ids=prompt.token_ids,
        response=rollout.text,
        token_ids=rollout.token_ids,
        log_probs=_nine_digits(rollout.log_probs) if is_short else rollout.log_probs,
        finish_reason=rollout.finish_reason,
        seed=rollout.seed,
        policy_version=rollout.policy_version,
        reward=None if scored is None else scored.reward,
        components={} if scored is None else scored.components,
        judge="" if scored is None else scored.judge,
        failure=score.reason if isinstance(score, ScoreFailure) else None,
        watched=watched.reward if isinstance(watched, Score) else None,
        kept=kept,
        reason=reason,
        metadata=prompt.metadata,
        reward_dtype="float64" if scored is None else scored.precision,
        by_design=rollout.by_design,
        watched_failure=watched.reason if isinstance(watched, ScoreFailure) else None,
        made_by=stamp.made_by,
        num_rows=stamp.num_rows,
    )


def _nine_digits(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{number:.9g}") for number in numbers)


def judged_of(group: Group) -> Iterator[Judged]:
    """A group's rollouts with what the judges said."""
    watched: Sequence[Answer | None] = group.watched or [None] * len(group.rollouts)
    for rollout, score, seen in zip(group.rollouts, group.scores, watched, strict=True):
        yield Judged(rollout, score, seen)


def rows_of(groups: Sequence[Group], selection: Selection, stamp: Stamp) -> Iterator[LedgerRow]:
    """The rows of a step, in (prompt, rollout) order.

    Raises:
        ValueError: groups, scores and selection differ in size.
    """
    for number, (group, kept_N, reasons_N) in enumerate(selection.rows(groups)):
        for judged, kept, reason in zip(judged_of(group), kept_N, reasons_N, strict=True):
            numbered = judged._replace(rollout=replace(judged.rollout, group=number))
            yield row_of(group.prompt, numbered, stamp, kept=kept, reason=reason)


def groups_of(rows: Sequence[LedgerRow]) -> list[Group]:
    """The groups that some rows of a ledger came from, in the order in which they first appear."""
    groups: dict[tuple[int, int], Group] = {}
    watched: dict[tuple[int, int], list[Answer | None]] = {}
    for row in rows:
        key = row.step, row.group
        group = groups.setdefault(key, Group(row.as_prompt, [], []))
        group.rollouts.append(row.as_rollout)
        group.scores.append(row.score)
        watched.setdefault(key, []).append(row.watched_score)
    for key, group in groups.items():
        if any(answer is not None for answer in watched[key]):
            group.watched = [answer or ScoreFailure("not watched") for answer in watched[key]]
    return list(groups.values())
