"""What a judge is asked and what it may answer: requests as arrays, answers as scores or failures.

A judge takes one of two kinds of request. In token mode, NeMo-Aligner's wire contract, it gets the token ids
of prompt and response, so that policy and judge must share a tokenizer. In text mode it gets the texts and
the data row, and may be anything. Whatever comes back is checked here: a score is a finite number that the
judge gave for that very row, everything else is a failure with its reason.

Part of the plain core, on the standard library and numpy only: how arrays travel is the business of
`client` and `server`. Named reward components are left out until a judge needs them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure

Mode = Literal["text", "tokens"]
Row = tuple[Prompt, Rollout]
Arrays = dict[str, npt.NDArray[np.generic]]

# Triton merges only requests whose rows are equally long, so lengths are rounded up to a few values.
TOKEN_BUCKET = 64


class JudgeFailed(RuntimeError):
    """The judge scored nothing; the message counts the reasons."""


class Judge(Protocol):
    """Whatever scores rollouts while others are still being generated.

    A context manager: leaving it closes the judge.
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


def text_request(rows: Sequence[Row]) -> Arrays:
    """Build a text-mode request.

    Args:
        rows: B pairs of prompt and rollout.

    Returns:
        `prompts`, `responses` and `metadata` (the whole data row as JSON), each `[B, 1]` of UTF-8 `bytes`.

    Raises:
        ValueError: a text is not valid Unicode (a lone surrogate).
        TypeError: metadata that JSON cannot express.
    """
    return {
        "prompts": _column([prompt.text for prompt, _ in rows]),
        "responses": _column([rollout.text for _, rollout in rows]),
        "metadata": _column([json.dumps(prompt.metadata, ensure_ascii=False) for prompt, _ in rows]),
    }


def token_request(rows: Sequence[Row], pad_to_length: int | None = None) -> Arrays:
    """Build a token-mode request.

    Args:
        rows: B pairs of prompt and rollout.
        pad_to_length: length S of every row; by default the longest of the rows, rounded up to a multiple
            of 64.

    Returns:
        `tokens`, int64 `[B, S]`, prompt and response padded with 0, and `sequence_lengths`, int64 `[B, 1]`.

    Raises:
        ValueError: a row is empty, or longer than `pad_to_length`.
    """
    sequences = [prompt.token_ids + rollout.token_ids for prompt, rollout in rows]
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) == 0:
        raise ValueError("a row has neither prompt nor response tokens")
    if pad_to_length is not None and max(lengths) > pad_to_length:
        raise ValueError(
            f"a row of {max(lengths)} tokens does not fit into remote_rm.pad_to_length={pad_to_length}; "
            "raise it, or set it to null to pad to the longest row"
        )
    width = pad_to_length or math.ceil(max(lengths) / TOKEN_BUCKET) * TOKEN_BUCKET
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
    return {"tokens": tokens, "sequence_lengths": np.asarray(lengths, dtype=np.int64)[:, None]}


def parse_rewards(answer: Mapping[str, object], num_rows: int) -> list[Score | ScoreFailure]:
    """Check an answer and turn it into one score or failure a row.

    Args:
        answer: outputs by name. `rewards` is floating point, `[B, 1]` or `[B]`. A judge may send `errors`
            too, bytes `[B, 1]`, with why a row has no reward; other outputs are not looked at.
        num_rows: B, how many rows were asked for.

    Returns:
        `num_rows` results in the order of the rows. An answer of the wrong shape or type fails every row; a
        NaN or infinity fails its row.
    """
    rewards = answer.get("rewards")
    problem = _problem(rewards, num_rows)
    if problem is not None:
        return [ScoreFailure(problem) for _ in range(num_rows)]
    assert isinstance(rewards, np.ndarray)
    values = map(float, rewards.ravel().tolist())
    return [_result(value, reason) for value, reason in zip(values, _reasons(answer, num_rows), strict=True)]


def _result(reward: float, reason: str) -> Score | ScoreFailure:
    """A row is a failure if the judge gave it a reason to be one, or no number."""
    if reason or not math.isfinite(reward):
        return ScoreFailure(reason or f"the judge's reward is {reward}")
    return Score(reward)


def _problem(rewards: object, num_rows: int) -> str | None:
    """Say why `rewards` cannot be read as `num_rows` numbers, None if it can."""
    if rewards is None:
        return "the judge's answer has no `rewards`"
    if not isinstance(rewards, np.ndarray) or rewards.dtype.kind != "f":
        kind = rewards.dtype if isinstance(rewards, np.ndarray) else type(rewards).__name__
        return f"the judge's `rewards` are {kind}, not floating point"
    if rewards.shape not in ((num_rows, 1), (num_rows,)):
        return f"the judge answered rewards of shape {list(rewards.shape)} for {num_rows} rows"
    return None


def _reasons(answer: Mapping[str, object], num_rows: int) -> list[str]:
    """Read the optional `errors`; a malformed one explains nothing and is not looked at."""
    errors = answer.get("errors")
    if not isinstance(errors, np.ndarray) or errors.size != num_rows:
        return [""] * num_rows
    return [e.decode("utf-8", "replace") if isinstance(e, bytes) else "" for e in errors.ravel().tolist()]


def _column(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    """Make a `[B, 1]` array of bytes; of type object, because numpy's own bytes drop trailing zeros."""
    column = np.empty((len(texts), 1), dtype=object)
    column[:, 0] = [text.encode("utf-8") for text in texts]
    return column
