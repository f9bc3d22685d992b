"""Judges that are Python: a user's function or class, found by its name, and functions as judges.

A function is called as `f(prompts, responses, metadata, **kwargs)`; a class is made with the keyword
arguments and is then a `base.ServedJudge` itself (`fingerprint` and `close` may be left out). What holds a
judge to its time limit is in `limit.py`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rs_aligner.reward.judges.base import (
    BadResult,
    BadSetting,
    JudgeFunction,
    Metadata,
    ServedJudge,
    Tokens,
    Value,
    checked_call,
    content_hash,
)
from rs_aligner.users_code import describe, find


class FunctionJudge:
    """A function as a judge.

    Args:
        function: the function, its settings bound.
        fingerprint: of its code and settings.
    """

    def __init__(self, function: JudgeFunction, fingerprint: str) -> None:
        self._function = function
        self.fingerprint = fingerprint

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """What the function says."""
        return self._function(prompts, responses, metadata)

    def close(self) -> None:
        """A function holds nothing."""


def bind(key: str, label: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> JudgeFunction:
    """A judge function with its settings bound.

    Args:
        key: the config key that named it.
        label: what it is called there.
        function: what was found.
        kwargs: its further keyword arguments.

    Raises:
        ValueError: it cannot be called as a judge with these settings.
    """
    try:
        inspect.signature(function).bind([], [], [], **kwargs)
    except TypeError as error:
        raise ValueError(
            f"{key}: {label} cannot be called as f(prompts, responses, metadata"
            f"{''.join(f', {name}=...' for name in kwargs)}): {error}"
        ) from None
    except ValueError:
        pass  # some callables in C have no signature to check; their first call will tell
    return functools.partial(function, **kwargs)


def users_judge(spec: str, kwargs: Mapping[str, Any]) -> tuple[ServedJudge, str | None]:
    """Load a user's judge and try it out.

    Args:
        spec: `path/to/file.py:name` or `package.module:name`, a function or a class.
        kwargs: its settings.

    Returns:
        The judge, and a warning if it failed on made-up rows.

    Raises:
        ValueError: no such file, module or name, something that cannot be called as a judge, settings that
            it does not take, or a judge that is broken whatever the rows.
    """
    found = find("judge.function", spec)
    module = sys.modules.get(getattr(found, "__module__", None) or "")
    code = getattr(module, "__file__", None)
    fingerprint = content_hash(spec.rpartition(":")[2], kwargs, *([Path(code)] if code else []))
    judge: ServedJudge
    if inspect.isclass(found):
        judge = _Instance(spec, _make(spec, found, kwargs), fingerprint)
    else:
        judge = FunctionJudge(bind("judge.function", spec, found, kwargs), fingerprint)
    return judge, smoke_test(judge)


def smoke_test(judge: ServedJudge) -> str | None:
    """Call a judge once with two made-up rows, so that a broken one is found before it is served.

    Returns:
        None if it gave values, else a warning: the made-up rows may lack what real rows have, so most
        errors prove nothing.

    Raises:
        ValueError: what no rows could mend: a wrong setting, a missing import, an undefined name, a result
            that is not one value a row.
    """
    rows = [AnyRow(id="made-up:1"), AnyRow(id="made-up:2")]
    try:
        checked_call(judge.score_texts, ["1 + 1 = ", "2 + 2 = "], ["2", "4"], rows)
    except BadSetting as error:
        raise ValueError(str(error)) from None
    except (BadResult, ImportError, NameError) as error:
        raise ValueError(f"the judge is broken: {describe(error)}") from error
    except Exception as error:
        return f"the judge failed on made-up rows, but may be right for real ones: {describe(error)}"
    return None


class _Instance:
    """A user's object as a judge: what it need not have is added."""

    def __init__(self, spec: str, judge: Any, fingerprint: str) -> None:
        if not callable(getattr(judge, "score_texts", None)):
            raise ValueError(
                f"judge.function: {spec} is a class without score_texts(prompts, responses, metadata)"
            )
        self._judge = judge
        self.fingerprint = content_hash(fingerprint, getattr(judge, "fingerprint", ""))
        if callable(getattr(judge, "score_tokens", None)):
            self.score_tokens: Callable[[Tokens, Tokens], Sequence[Value]] = judge.score_tokens

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        values: Sequence[Value] = self._judge.score_texts(prompts, responses, metadata)
        return values

    def close(self) -> None:
        if callable(getattr(self._judge, "close", None)):
            self._judge.close()


class AnyRow(dict[str, Any]):
    """A made-up data row that has an answer under every key, however a judge asks for it."""

    def __missing__(self, key: str) -> str:
        return "#### 2"

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if default is None else default


def _make(spec: str, found: type[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return found(**kwargs)
    except Exception as error:
        settings = ", ".join(f"{name}=..." for name in kwargs)
        raise ValueError(f"judge.function: making {spec}({settings}) failed: {describe(error)}") from error
