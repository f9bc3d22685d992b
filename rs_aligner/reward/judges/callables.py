"""A function that a user hands over as an object, in a notebook say, as a judge.

Two forms are understood, told apart by the names of the parameters:

- `f(prompts, responses, metadata)`, the form of all judges here: see `base`.
- `f(samples, prompts, outputs, **kwargs)`, trlX's: called with keywords only, `samples` being prompts with
  their outputs, and one more keyword, a list with a value for each row, for every key of the prompts' rows. A
  function that has no `**kwargs` gets only what it names.

Left out on purpose: a time limit (`limit` needs a function that another process can find) and trlX's
`tokenizer` keyword.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rs_aligner.reward.judges.alarm import keeping_alarm
from rs_aligner.reward.judges.base import JudgeFunction, Metadata, Value, content_hash
from rs_aligner.reward.judges.functions import FunctionJudge

_TRLX = ("samples", "prompts", "outputs")
_FORMS = "f(prompts, responses, metadata), or trlX's f(samples, prompts, outputs, **kwargs)"
_NOT_PASSED = ("text", "prompt")  # what the row's prompt was made from, which `prompts` has already


def judge_of(function: Callable[..., Any], row_keys: Collection[str] = ()) -> FunctionJudge:
    """Make a judge of a function.

    Args:
        function: in one of the two forms; also any object that can be called.
        row_keys: the keys of the prompts' rows, for trlX's form.

    Returns:
        The judge. Its fingerprint is of the function's source, where that can be read. An alarm or a handler
        of it that a call leaves behind is taken back (`alarm`).

    Raises:
        ValueError: it cannot be called in either form.
    """
    if not callable(function):
        raise ValueError(f"reward_fn is a {type(function).__name__}: it should be a function, {_FORMS}")
    adapted = _adapted(function, row_keys)
    return FunctionJudge(keeping_alarm(adapted), content_hash(*_identity(function)))


def _adapted(function: Callable[..., Any], row_keys: Collection[str]) -> JudgeFunction:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables in C have none; their first call will tell
        return function
    names = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in names.values())
    only_keywords = takes_any and len(names) == 1
    if "samples" in names or "outputs" in names or only_keywords:
        keys = [key for key in row_keys if key not in _NOT_PASSED]
        taken = sorted(set(keys) & set(_TRLX))
        if taken:
            raise ValueError(f"rows have the key {taken[0]!r}, which reward_fn gets as a keyword; rename it")
        wanted = [name for name in (*_TRLX, *keys) if takes_any or name in names]
        try:
            signature.bind(**dict.fromkeys(wanted))
        except TypeError as error:
            raise ValueError(
                f"reward_fn{signature} cannot be called with the keywords {', '.join(wanted)}: {error}"
            ) from None
        return _in_trlx_form(function, wanted)
    try:
        signature.bind([], [], [])
    except TypeError:
        raise ValueError(f"reward_fn{signature} should be {_FORMS}") from None
    return function


def _in_trlx_form(function: Callable[..., Any], wanted: Sequence[str]) -> JudgeFunction:
    def scores(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> Sequence[Value]:
        samples = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        columns = {"samples": samples, "prompts": prompts, "outputs": responses}
        rows = {key: columns[key] if key in columns else [row.get(key) for row in metadata] for key in wanted}
        values: Sequence[Value] = function(**rows)
        return values

    return scores


def _identity(function: Any) -> tuple[str, str]:
    """Name and source, as far as there are any."""
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):
        source = ""
    return f"{named.__module__}.{named.__qualname__}", source
