"""What a judge is asked and what it may answer: requests as arrays, answers as scores or failures.

A judge takes one of two kinds of request. In token mode, NeMo-Aligner's wire contract, it gets the token ids
of prompt and response, so that policy and judge must share a tokenizer. In text mode it gets the texts and
the data row, and may be anything. Whatever comes back is checked here: a score is a finite number that the
judge gave for that very row, everything else is a failure with its reason. What a server offers beyond
`rewards` (row ids, reasons, a fingerprint, components) is checked too; a server that offers nothing else, as
NeMo-Aligner's, is as good.

Part of the plain core, on the standard library and numpy only: how arrays travel is the business of
`client` and `server`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, cast

import numpy as np
import numpy.typing as npt

from rs_aligner.precision import PRECISIONS, Precision
from rs_aligner.remote.errors import BadAnswer
from rs_aligner.remote.kserve import Arrays
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure

Mode = Literal["text", "tokens"]

# Triton merges only requests whose rows are equally long, so lengths are rounded up to a few values.
TOKEN_BUCKET = 64
JUDGE_TOKEN = "RS_ALIGNER_JUDGE_TOKEN"
"""The variable of the environment that may hold the servers' access token."""


class JudgeFailed(RuntimeError):
    """The judge failed too much to go on; the message counts the reasons."""


class Judge(Protocol):
    """Whatever scores rollouts while others are still being generated.

    A context manager: leaving it closes the judge. One that is in this process, and counts what it does, has
    `counters` (`reward.counters`).
    """

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Score | ScoreFailure]:
        """Hand in one rollout; the future resolves to its score or failure and never raises."""
        ...

    def flush(self) -> None:
        """Say that nothing follows soon: what still waits to fill a batch goes out at once."""
        ...

    def close(self) -> None:
        """Release everything. Rollouts without a score yet get a failure. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row as it goes to a judge of texts, UTF-8; `metadata` is the data row as JSON."""

    prompt: bytes
    response: bytes
    metadata: bytes


def text_row(prompt: Prompt, rollout: Rollout) -> TextRow:
    """Encode a row for text mode.

    Raises:
        ValueError: a text is not valid Unicode (a lone surrogate).
        TypeError: metadata that JSON cannot express.
    """
    metadata = json.dumps(prompt.metadata, ensure_ascii=False)
    return TextRow(prompt.text.encode(), rollout.text.encode(), metadata.encode())


def text_request(rows: Sequence[TextRow], row_ids: Sequence[bytes] | None = None) -> Arrays:
    """Build a text-mode request.

    Args:
        rows: B encoded rows.
        row_ids: an id for each, for a judge that takes them.

    Returns:
        `prompts`, `responses`, `metadata`, and `row_ids` if given, each `[B, 1]` of `bytes`.
    """
    request: Arrays = {
        "prompts": bytes_column([row.prompt for row in rows]),
        "responses": bytes_column([row.response for row in rows]),
        "metadata": bytes_column([row.metadata for row in rows]),
    }
    return request if row_ids is None else {**request, "row_ids": bytes_column(row_ids)}


def token_row(prompt: Prompt, rollout: Rollout, pad_to_length: int | None = None) -> tuple[int, ...]:
    """Encode a row for token mode: the ids of prompt and response.

    Raises:
        ValueError: the row is empty, or longer than `pad_to_length`.
    """
    sequence = prompt.token_ids + rollout.token_ids
    if not sequence:
        raise ValueError("it has neither prompt nor response tokens")
    if pad_to_length is not None and len(sequence) > pad_to_length:
        raise ValueError(
            f"{len(sequence)} tokens do not fit into remote_rm.pad_to_length={pad_to_length}; "
            "raise it, or set it to null to pad to the longest row"
        )
    return sequence


def token_request(
    rows: Sequence[tuple[int, ...]],
    row_ids: Sequence[bytes] | None = None,
    *,
    pad_to_length: int | None = None,
) -> Arrays:
    """Build a token-mode request.

    Args:
        rows: B encoded rows.
        row_ids: an id for each, for a judge that takes them.
        pad_to_length: length S of every row; by default the longest of the rows, rounded up to a multiple
            of 64.

    Returns:
        `tokens`, int64 `[B, S]`, prompt and response padded with 0, `sequence_lengths`, int64 `[B, 1]`, and
        `row_ids`, bytes `[B, 1]`, if given.
    """
    lengths = [len(sequence) for sequence in rows]
    width = pad_to_length or math.ceil(max(lengths) / TOKEN_BUCKET) * TOKEN_BUCKET
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    for row, sequence in enumerate(rows):
        tokens[row, : len(sequence)] = sequence
    request: Arrays = {"tokens": tokens, "sequence_lengths": np.asarray(lengths, dtype=np.int64)[:, None]}
    return request if row_ids is None else {**request, "row_ids": bytes_column(row_ids)}


def parse_answer(
    answer: Mapping[str, object],
    num_rows: int,
    row_ids: Sequence[bytes] | None = None,
    fingerprint: str | None = None,
) -> list[Score | ScoreFailure]:
    """Check an answer and turn it into one score or failure a row.

    Args:
        answer: outputs by name. `rewards` is floating point, `[B, 1]` or `[B]`, of the type that the model
            declares: float64 of our server, float32 of NeMo-Aligner's. The others are bytes of the same
            shape, and optional: `errors` (why a row has no reward; empty where it has one), `row_ids`,
            `fingerprint` (of the judge, the same in every row), `components` (named parts of the reward as a
            JSON object, or empty). Outputs of other names are not looked at.
        num_rows: B, how many rows were asked for.
        row_ids: what was sent as ids; they must come back. None if the judge does not take any.
        fingerprint: the judge's, as far as it is known; another one is refused, and none is, too.

    Returns:
        B results in the order of the rows. A row with a reason, a NaN or an infinity is a failure.

    Raises:
        BadAnswer: an output of the wrong shape or type, another request's rows, another judge.
    """
    rewards, precision = _rewards(answer.get("rewards"), num_rows)
    reasons = _bytes_of(answer, "errors", num_rows)
    ids = _bytes_of(answer, "row_ids", num_rows)
    if row_ids is not None and ids != list(row_ids):
        raise BadAnswer("the judge's row_ids are " + ("absent" if ids is None else "those of other rows"))
    judge = fingerprint_of(answer, num_rows)
    if fingerprint is not None and judge != fingerprint:
        raise BadAnswer(
            f"the judge's fingerprint is {judge or 'absent'}, not {fingerprint}: it was replaced in mid-run"
        )
    components = _bytes_of(answer, "components", num_rows)
    empty = [b""] * num_rows
    rows = zip(rewards, reasons or empty, components or empty, strict=True)
    return [_result(reward, reason, parts, judge, precision) for reward, reason, parts in rows]


def fingerprint_of(answer: Mapping[str, object], num_rows: int) -> str:
    """The judge's fingerprint, empty where it offers none.

    Raises:
        BadAnswer: there is more than one in the answer, or an empty one.
    """
    column = _bytes_of(answer, "fingerprint", num_rows)
    if column is None:
        return ""
    if len(set(column)) != 1 or not column[0]:
        raise BadAnswer(f"the judge's answer has {len(set(column))} fingerprints, or an empty one")
    return column[0].decode("utf-8", "replace")


def _result(
    reward: float, reason: bytes, parts: bytes, judge: str, precision: Precision
) -> Score | ScoreFailure:
    """A row is a failure if the judge gave it a reason to be one, or no number."""
    if reason:
        return ScoreFailure(reason.decode("utf-8", "replace"))
    if not math.isfinite(reward):
        return ScoreFailure(f"the judge's reward is {reward}")
    try:
        components = json.loads(parts) if parts else {}
        if not all(type(value) in (int, float) for value in components.values()):
            raise ValueError("not all of them are numbers")
        return Score(reward, {name: float(value) for name, value in components.items()}, judge, precision)
    except Exception as error:  # JSON has many ways to be none
        return ScoreFailure(f"the judge's components cannot be read: {error}")


def _rewards(rewards: object, num_rows: int) -> tuple[list[float], Precision]:
    """The rewards as doubles, and the type that they came in."""
    if rewards is None:
        raise BadAnswer("the judge's answer has no `rewards`")
    if not isinstance(rewards, np.ndarray) or rewards.dtype.name not in PRECISIONS:
        kind = rewards.dtype if isinstance(rewards, np.ndarray) else type(rewards).__name__
        raise BadAnswer(f"the judge's `rewards` are {kind}, not floating point")
    if rewards.shape not in ((num_rows, 1), (num_rows,)):
        raise BadAnswer(f"the judge answered rewards of shape {list(rewards.shape)} for {num_rows} rows")
    precision = cast(Precision, rewards.dtype.name)
    return [float(value) for value in rewards.ravel().tolist()], precision


def _bytes_of(answer: Mapping[str, object], name: str, num_rows: int) -> list[bytes] | None:
    """Read an output of bytes; None if it is not there."""
    column = answer.get(name)
    if column is None:
        return None
    if not isinstance(column, np.ndarray) or column.dtype != object:
        raise BadAnswer(f"the judge's `{name}` are not bytes")
    if column.shape not in ((num_rows, 1), (num_rows,)):
        raise BadAnswer(f"the judge answered {name} of shape {list(column.shape)} for {num_rows} rows")
    items = column.ravel().tolist()
    if not all(isinstance(item, bytes) for item in items):
        raise BadAnswer(f"the judge's `{name}` are not bytes")
    return items


def bytes_column(items: Sequence[bytes]) -> npt.NDArray[np.object_]:
    """A `[B, 1]` array of bytes; of type object, because numpy's own bytes drop trailing zeros."""
    column = np.empty((len(items), 1), dtype=object)
    column[:, 0] = items
    return column
