"""Judges that are plain functions: two built-in ones, and the user's own.

A judge function is called as `f(prompts, responses, metadata)` with lists of equal length and returns one
number a row. `load_judge` finds it, binds its settings and checks what it returns; `score_rows` calls it
so that what goes wrong in one row stays with that row. A reward model is not here: it is served by its own
room and only meets these at the protocol.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rs_aligner.config import JudgeConfig

Metadata = dict[str, Any]
JudgeFunction = Callable[[list[str], list[str], list[Metadata]], list[float]]

_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d{1,3})?", re.ASCII | re.IGNORECASE)


def exact_answer(
    prompts: list[str], responses: list[str], metadata: list[Metadata], *, answer_key: str = "answer"
) -> list[float]:
    """Reward 1.0 if the response's final answer is the reference's, else 0.0.

    The final answer is what follows the last `####`, or the whole text without one. Answers are equal if
    they are the same text with white space normalised, or the same number (commas are separators).

    Args:
        prompts: not looked at.
        responses: what is judged.
        metadata: the data rows; `metadata[answer_key]` is the reference, a text or a number.
        answer_key: name of the reference in the data row.

    Raises:
        ValueError: a row without a reference; the message names its id.
    """
    rewards = []
    for response, row in zip(responses, metadata, strict=True):
        if row.get(answer_key) is None:
            raise ValueError(
                f"row {row.get('id', '(no id)')} has no {answer_key!r} to compare with; "
                "name the reference's key with judge.kwargs.answer_key"
            )
        rewards.append(float(_same_answer(_final_answer(response), _final_answer(str(row[answer_key])))))
    return rewards


def sentiment(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> list[float]:
    """Reward a positive tone: VADER's compound score of the response, in [-1, 1].

    Source: Hutto and Gilbert, "VADER: a parsimonious rule-based model for sentiment analysis" (2014).

    Raises:
        ValueError: the optional package is not installed.
    """
    analyzer = _vader()
    return [analyzer.polarity_scores(response)["compound"] for response in responses]


BUILT_IN: dict[str, JudgeFunction] = {"exact_answer": exact_answer, "sentiment": sentiment}


def load_judge(cfg: JudgeConfig) -> JudgeFunction:
    """Find the judge that the config names and bind its settings.

    Args:
        cfg: exactly one of `function` (`path/to/file.py:name` or `package.module:name`) and `name` (a
            built-in judge), and `kwargs`, its further keyword arguments.

    Returns:
        The judge; it raises `BadResult` if the function's result is not one number a row. NaN and
        infinities pass: they are the function's way to say that it has no score.

    Raises:
        ValueError: no such file, module or function, something that cannot be called as a judge, or
            `kwargs` that it does not take.
    """
    if (cfg.function is None) == (cfg.name is None):
        raise ValueError(
            "set exactly one of judge.function (path/to/file.py:name or package.module:name) and "
            f"judge.name (one of {', '.join(BUILT_IN)})"
        )
    if cfg.function is not None:
        key, label, function = "judge.function", cfg.function, _load_function(cfg.function)
    else:
        assert cfg.name is not None
        key, label, function = "judge.name", cfg.name, BUILT_IN[cfg.name]
    try:
        inspect.signature(function).bind([], [], [], **cfg.kwargs)
    except TypeError as error:
        raise ValueError(
            f"{key}: {label} cannot be called as f(prompts, responses, metadata"
            f"{''.join(f', {name}=...' for name in cfg.kwargs)}): {error}"
        ) from None
    except ValueError:
        pass  # some callables in C have no signature to check; their first call will tell
    if cfg.name == "sentiment":
        _vader()
    return _checked(label, functools.partial(function, **cfg.kwargs))


def smoke_test(judge: JudgeFunction) -> str | None:
    """Call a judge once with two made-up rows, so that a broken one is found before it is served.

    Returns:
        None if it gave numbers, else a warning: the made-up rows may lack what real rows have, so most
        errors prove nothing.

    Raises:
        ValueError: what no rows could mend: a missing import, an undefined name, a result that is not one
            number a row.
    """
    try:
        judge(["1 + 1 = ", "2 + 2 = "], ["2", "4"], [_AnyRow(id="made-up:1"), _AnyRow(id="made-up:2")])
    except (BadResult, ImportError, NameError) as error:
        raise ValueError(f"the judge is broken: {describe(error)}") from error
    except Exception as error:
        return f"the judge failed on made-up rows, but may be right for real ones: {describe(error)}"
    return None


def score_rows(
    judge: JudgeFunction,
    prompts: Sequence[str],
    responses: Sequence[str],
    metadata: Sequence[Metadata],
    max_rows: int,
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Score rows, at most `max_rows` a call.

    When a call fails, its rows are judged one by one: which rows travel together is an accident of timing,
    and a row's score must not depend on its neighbours.

    Returns:
        Rewards `[B]`, NaN where there is none, and for each row the reason, empty where there is a reward.
    """
    rewards = np.full(len(prompts), np.nan, dtype=np.float32)
    reasons = [""] * len(prompts)
    for start in range(0, len(prompts), max_rows):
        rows = slice(start, min(start + max_rows, len(prompts)))
        chunk = (list(prompts[rows]), list(responses[rows]), list(metadata[rows]))
        try:
            values = judge(*chunk)
        except Exception as error:
            if len(chunk[0]) > 1:
                rewards[rows], reasons[rows] = score_rows(judge, *chunk, max_rows=1)
            else:
                reasons[start] = f"the judge raised {describe(error)}"
            continue
        with np.errstate(over="ignore"):
            rewards[rows] = values
        for row, value in enumerate(values, start):
            if not math.isfinite(rewards[row]):
                reasons[row], rewards[row] = f"the judge's reward is {value}, not a finite float32", np.nan
    return rewards, reasons


def describe(error: BaseException) -> str:
    """An exception on one line, for logs and answers."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class BadResult(ValueError):
    """A judge function returned something else than one number a row."""


class _AnyRow(dict[str, Any]):
    """A made-up data row that has an answer under every key, however a judge asks for it."""

    def __missing__(self, key: str) -> str:
        return "#### 2"

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if default is None else default


def _load_function(spec: str) -> JudgeFunction:
    """Import `path/to/file.py:name` or `package.module:name`."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ValueError(
            f"judge.function: {spec!r} must look like path/to/file.py:name or package.module:name"
        )
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError as error:
        raise ValueError(f"judge.function: {error}") from None
    except Exception as error:
        hint = "" if place.endswith(".py") else " (is its folder on PYTHONPATH?)"
        raise ValueError(f"judge.function: importing {place} failed{hint}: {describe(error)}") from error
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(f"judge.function: {place} has no {name!r}")
    if not callable(function):
        raise ValueError(f"judge.function: {spec} is a {type(function).__name__}, not a function")
    return function


def _import_file(path: Path) -> Any:
    """Import a file as Python runs a script: its own folder is searched for what it imports."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"rs_aligner_judge_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up by name
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


def _checked(label: str, function: Callable[..., Any]) -> JudgeFunction:
    """Wrap a judge so that its result is a list of one float a row or an error."""

    def judge(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> list[float]:
        result = function(prompts, responses, metadata)
        try:
            values = list(result)
        except TypeError:
            raise BadResult(
                f"judge {label} returned a {type(result).__name__}, not a list of numbers"
            ) from None
        if len(values) != len(prompts):
            raise BadResult(f"judge {label} returned {len(values)} results for {len(prompts)} rows")
        return [_number(label, value) for value in values]

    return judge


def _number(label: str, value: Any) -> float:
    """Accept Python's numbers and the scalars of numpy and torch; a text that looks like one is none."""
    try:
        number = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):  # an array of several numbers
        number = None
    if not isinstance(number, (int, float)):
        raise BadResult(f"judge {label} returned {value!r} for a row, not a number")
    return float(number)


def _final_answer(text: str) -> str:
    """The text after the last `####`, or all of it, with white space normalised."""
    return " ".join(text.rpartition("####")[2].split())


def _same_answer(response: str, reference: str) -> bool:
    if response == reference:
        return True
    if not (_NUMBER.fullmatch(response) and _NUMBER.fullmatch(reference)):
        return False
    # Decimal, since long sums that differ in the last digit are equal as floats.
    return Decimal(response.replace(",", "")) == Decimal(reference.replace(",", ""))


@functools.cache
def _vader() -> Any:
    """The analyzer, made once: it reads its lexicon from a file."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ValueError(
            "judge.name: 'sentiment' needs the vaderSentiment package; install rs-aligner[sentiment]"
        ) from None
    return SentimentIntensityAnalyzer()
