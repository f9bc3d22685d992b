"""A line of the ledger: one rollout, with what became of it, as one plain JSON object.

The last field is a checksum of all that stands before it, so a flipped bit is noticed wherever it is; every
row also says how many its file has, so missing lines are. Left out on purpose: files and folders (`ledger`,
`open_step`), and forgers, who can write a checksum as well.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from rs_aligner.files import checksum
from rs_aligner.precision import Precision
from rs_aligner.rollout import FinishReason, Group, Prompt, Rollout, Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which reading a ledger does not need

Answer = Score | ScoreFailure
AnyRow = TypeVar("AnyRow")

NOT_SELECTED = "not selected yet"
NOT_TRAINED = "the step was not trained"
HELD_OUT = "held out"
"""Reasons of rows that no selection has seen: of an open step, of a step whose judge failed, held out."""

KEPT_MARK = b'"kept":true'
"""In the line of every row that is kept, and in hardly any other: within a text, quotes are escaped."""

_END = b'"}'  # of a line: the checksum's closing quote, and the object's end
_STEP = re.compile(rb'\{"step":(\d+),')
_LAST_FIELDS = re.compile(rb'"num_rows":(?P<num_rows>\d+),"checksum":"(?P<checksum>[0-9a-f]{16})"\}\n?\Z')
_LAST_BYTES = 80  # of a line, in which the last two fields are


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

    Args:
        prompt, judged, stamp, kept, reason: what it says.
        is_short: log-probabilities have the nine digits that tell which float32 each was. To cut them takes
            most of the time, which is not worth it for a line that is replaced within the step.
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
        log_probs=tuple(float(f"{value:.9g}") for value in rollout.log_probs)
        if is_short
        else rollout.log_probs,
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


def to_line(row: LedgerRow) -> bytes:
    """A row as a line of a file, its checksum filled in."""
    try:
        line = msgspec.json.encode(row)
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold: escape this line
        record = {name: getattr(row, name) for name in LedgerRow.__slots__}
        line = json.dumps(record, separators=(",", ":")).encode()
    begin = line[: -len(_END)]  # the checksum is the last field, and empty
    return begin + checksum(begin).encode() + _END + b"\n"


def from_line(line: bytes, place: str, decoder: msgspec.json.Decoder[AnyRow]) -> AnyRow:
    """The row of a line, which is checked.

    Args:
        line: its newline included or not.
        place: `file:line`, for messages.
        decoder: `ROWS` or `KEPT_ROWS`.

    Raises:
        ValueError: it is no row of a ledger, or not as it was written.
    """
    check_line(line, place)
    return decoded(line, place, decoder)


def check_line(line: bytes, place: str) -> tuple[int, int]:
    """See that a line is as it was written, without reading all of it.

    Args:
        line, place: as of `from_line`.

    Returns:
        The row's step, and how many rows its file has.

    Raises:
        ValueError: it is no row of a ledger, or not as it was written.
    """
    begin, end = _STEP.match(line), _LAST_FIELDS.search(line, max(0, len(line) - _LAST_BYTES))
    if begin is None or end is None:
        raise ValueError(f"{place}: not a row of a ledger")
    if checksum(memoryview(line)[: end.start("checksum")]).encode() != end["checksum"]:
        raise ValueError(
            f"{place}: not a row of a ledger as it was written: its checksum is of another content"
        )
    return int(begin[1]), int(end["num_rows"])


def decoded(line: bytes, place: str, decoder: msgspec.json.Decoder[AnyRow]) -> AnyRow:
    """The row of a line that is checked already; arguments as of `from_line`."""
    try:
        try:
            return decoder.decode(line)
        except msgspec.DecodeError:  # half of a surrogate pair is more than it reads
            return msgspec.convert(json.loads(line), decoder.type)
    except ValueError as error:
        raise ValueError(f"{place}: not a row of a ledger ({error})") from error


def with_exact_log_probs(row: LedgerRow) -> LedgerRow:
    """Nine digits tell which float32 it was, and a run that continues needs that number to the last bit."""
    return replace(row, log_probs=tuple(array("f", row.log_probs)))


ROWS = msgspec.json.Decoder(LedgerRow)
KEPT_ROWS = msgspec.json.Decoder(KeptRow)
