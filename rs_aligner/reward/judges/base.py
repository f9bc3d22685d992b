"""What a judge is, and how rows are scored so that what goes wrong in one stays with that one.

The simplest judge is a function `f(prompts, responses, metadata)` with lists of equal length that returns one
value a row: a number, or a dict of numbers with the key "reward" (the others are its named components). A
judge that wants batches of its own, token ids or several processes is a class with the methods of
`ServedJudge`, and of `TokenJudge` if it can. Either way NaN, or a `ScoreFailure` with its reason, means that
there is no score; whatever is not one value a row is an error.

Left out on purpose: how a judge is found (`load`) and how it is reached (`server`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from rs_aligner import __version__
from rs_aligner.precision import as_meant
from rs_aligner.rollout import PREFILLED, Score, ScoreFailure
from rs_aligner.users_code import describe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Metadata = dict[str, Any]
Value = float | Mapping[str, float] | Score | ScoreFailure
"""What a judge may say of a row."""
JudgeFunction = Callable[[list[str], list[str], list[Metadata]], Sequence[Value]]
# A worker's process is started often, and most judges need no numpy.
Tokens: TypeAlias = "npt.NDArray[np.int64]"

REWARD = "reward"


class BadResult(ValueError):
    """A judge returned something else than one value a row."""


class BadSetting(ValueError):
    """A judge was given settings with which it can score nothing."""


@runtime_checkable
class ServedJudge(Protocol):
    """Scores texts. What calls it never does so from two threads at once.

    A judge with a tokenizer of its own names its folder in an attribute `tokenizer_folder`, for `check=true`.
    One that may be called from several threads at once says so by `takes_calls_at_once = True`, and by
    `rows_at_once` how many rows are worth it, if it gains nothing by rows that come together: then each is
    known as soon as it is scored. One that counts what it does has `counters`, numbers by name since its
    start, which only grow. One that found out something about the machine that its users should know has
    `remarks`, lines of text.
    """

    @property
    def fingerprint(self) -> str:
        """Short hexadecimal text that changes when scores may: of name, settings and weights."""
        ...

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """One value for each of B rows, in their order.

        Args:
            prompts: the prompts as fed to the policy; empty where only token ids were sent.
            responses: the texts to be judged.
            metadata: the data rows; where the prompt begins the answer already, `prefilled` is with what.

        Raises:
            Exception: whatever fails. Of several rows it fails the call, and each is then tried alone.
        """
        ...

    def close(self) -> None:
        """Release everything, processes too. May be called twice, and while rows are being scored."""
        ...


@runtime_checkable
class TokenJudge(ServedJudge, Protocol):
    """A judge that shares the policy's tokenizer, and scores token ids as they are."""

    def score_tokens(self, tokens: Tokens, lengths: Tokens) -> Sequence[Value]:
        """One value for each row.

        Args:
            tokens: `[B, S]`, prompt and response, padded on the right with anything.
            lengths: `[B]`, how many of a row's tokens count.
        """
        ...


def takes_calls_at_once(judge: ServedJudge) -> bool:
    """Whether several threads may call a judge at once."""
    return bool(getattr(judge, "takes_calls_at_once", False))


def rows_at_once(judge: ServedJudge) -> int | None:
    """How many rows a judge wants at once, each by itself; None for one that wants them together."""
    number: int | None = getattr(judge, "rows_at_once", None)
    return number if takes_calls_at_once(judge) else None


def remarks_of(judge: ServedJudge) -> list[str]:
    """What a judge has to say about the machine that it runs on, a line each."""
    return list(getattr(judge, "remarks", ()))


def whole_answers(responses: Sequence[str], metadata: Sequence[Metadata]) -> list[str]:
    """The answers with what the prompt began them with, such as the `<think>` of a chat template."""
    return [
        f"{row[PREFILLED]}{response}" if PREFILLED in row else response
        for response, row in zip(responses, metadata, strict=True)
    ]


def score_rows(
    call: Callable[..., Sequence[Value]], columns: Sequence[Sequence[Any]], max_rows: int
) -> list[Score | ScoreFailure]:
    """Score rows, at most `max_rows` a call.

    When a call fails, its rows are judged one by one: which rows travel together is an accident of timing,
    and a row's score must not depend on its neighbours.

    Args:
        call: a judge's `score_texts` or `score_tokens`.
        columns: its arguments, each a list or an array of B rows.
        max_rows: most rows of a call.

    Returns:
        One score or failure for each row.
    """
    scores: list[Score | ScoreFailure] = []
    num_rows = len(columns[0])
    for start in range(0, num_rows, max_rows):
        chunk = [column[start : min(start + max_rows, num_rows)] for column in columns]
        try:
            scores += checked_call(call, *chunk)
        except Exception as error:
            if len(chunk[0]) > 1:
                scores += score_rows(call, chunk, max_rows=1)
            else:
                scores.append(ScoreFailure(f"the judge raised {describe(error)}"))
    return scores


def checked_call(call: Callable[..., Sequence[Value]], *columns: Any) -> list[Score | ScoreFailure]:
    """Call a judge once and check what it says.

    Raises:
        BadResult: it returned something else than one value a row.
        Exception: whatever the judge raises.
    """
    result: Any = call(*columns)
    try:
        values = list(result)
    except TypeError:
        raise BadResult(f"the judge returned a {type(result).__name__}, not a list of values") from None
    if len(values) != len(columns[0]):
        raise BadResult(f"the judge returned {len(values)} results for {len(columns[0])} rows")
    return [_read(value) for value in values]


def content_hash(*parts: Any) -> str:
    """A judge's fingerprint: 16 hexadecimal digits of whatever decides its scores, and of our version.

    Args:
        parts: files (their content counts, not their place), or anything that JSON can express.
    """
    digest = hashlib.blake2b(__version__.encode(), digest_size=8)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _read(value: Any) -> Score | ScoreFailure:
    """A score if every number of a row's value is finite."""
    if isinstance(value, ScoreFailure | Score):
        return value
    if not isinstance(value, Mapping):
        return _score(_number(value), {})
    if REWARD not in value:
        raise BadResult(f"the judge returned {_shown(value)} for a row, without the key {REWARD!r}")
    numbers = {str(name): _number(number) for name, number in value.items()}
    return _score(numbers.pop(REWARD), numbers)


def _score(reward: float, components: dict[str, float]) -> Score | ScoreFailure:
    for name, number in {REWARD: reward, **components}.items():
        if not math.isfinite(number):
            return ScoreFailure(f"the judge's {name} is {number}, not a finite number")
    return Score(reward, components)


def _number(value: Any) -> float:
    """Accept Python's numbers and the scalars of numpy and torch; a text that looks like one is none.

    A scalar of a narrower type is the number that it stands for: as a double, float32's 0.7 is below 0.7.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):  # an array of several numbers
        number = None
    if not isinstance(number, (int, float)):
        raise BadResult(f"the judge returned {_shown(value)} for a row, not a number")
    return as_meant(float(number), str(getattr(value, "dtype", "")).removeprefix("torch."))


def _shown(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
