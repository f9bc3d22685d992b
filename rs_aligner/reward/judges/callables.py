"""A function that a user hands over as an object, in a notebook say, as a judge.

Three forms are understood, told apart by the names of the parameters, or by the function's own attribute
`reward_form`, one of `FORMS`:

- `ours`: `f(prompts, responses, metadata)`, the form of all judges here: see `base`.
- `trlx`: `f(samples, prompts, outputs, **kwargs)`: called with keywords only, `samples` being prompts with
  their outputs, and one more keyword, a list with a value for each row, for every key of the prompts' rows. A
  function that has no `**kwargs` gets only what it names. One of `**kwargs` alone is taken for this form.
- `trl`: `f(prompts, completions, **columns)`: the same with TRL's names. Of a row that is a chat the prompt
  is its messages and the completion a list of the assistant's message, as there. None is no score. TRL's
  `completion_ids` and `trainer_state` are not passed.

trlX's `metric_fn` is called as its reward function, and answers with a dict of lists.

Left out on purpose: a time limit (`limit` needs a function that another process can find) and trlX's
`tokenizer` keyword.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import fmean
from tokenize import TokenError
from typing import Any, Literal, get_args

from rs_aligner.reward.judges.alarm import keeping_alarm
from rs_aligner.reward.judges.base import JudgeFunction, Metadata, content_hash
from rs_aligner.reward.judges.functions import FunctionJudge
from rs_aligner.rollout import PREFILLED, Group
from rs_aligner.users_code import describe

_logger = logging.getLogger("rs_aligner")
Metrics = Callable[[Sequence[Group]], Mapping[str, float]]

Form = Literal["ours", "trl", "trlx"]
FORMS: tuple[Form, ...] = get_args(Form)
MARK = "reward_form"
"""The attribute of a function that says which form it has."""
_OWN: dict[Form, tuple[str, ...]] = {
    "trlx": ("samples", "prompts", "outputs"),
    "trl": ("prompts", "completions"),
}
_FORMS = (
    "f(prompts, responses, metadata), TRL's f(prompts, completions, **columns), or trlX's "
    "f(samples, prompts, outputs, **kwargs)"
)
_NOT_PASSED = ("text", "prompt")  # what the row's prompt was made from, which `prompts` has already


def judge_of(function: Callable[..., Any], row_keys: Collection[str] = ()) -> FunctionJudge:
    """Make a judge of a function.

    Args:
        function: in one of the three forms; also any object that can be called.
        row_keys: the keys of the prompts' rows, for TRL's and trlX's form.

    Returns:
        The judge. Its fingerprint is of the function's source, where that can be read. An alarm or a handler
        of it that a call leaves behind is taken back (`alarm`).

    Raises:
        ValueError: it cannot be called in any of them.
    """
    if not callable(function):
        raise ValueError(f"reward_fn is a {type(function).__name__}: it should be a function, {_FORMS}")
    adapted = _adapted(function, row_keys)
    return FunctionJudge(keeping_alarm(adapted), content_hash(*_identity(function)))


def form_of(function: Callable[..., Any]) -> Form:
    """The form that a function says it has, or that its parameters are of.

    Raises:
        ValueError: it names none that there is.
    """
    marked = getattr(function, MARK, None)
    if marked is not None:
        if marked not in FORMS:
            raise ValueError(f"reward_fn.{MARK} is {marked!r}: it should be one of {', '.join(FORMS)}")
        return marked
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables in C have none; their first call will tell
        return "ours"
    if "completions" in names:
        return "trl"
    only_keywords = len(names) == 1 and all(p.kind is p.VAR_KEYWORD for p in names.values())
    return "trlx" if "samples" in names or "outputs" in names or only_keywords else "ours"


def metrics_by(function: Callable[..., Any], row_keys: Collection[str] = ()) -> Metrics:
    """TrlX's `metric_fn` as figures of held-out answers.

    Args:
        function: `f(samples, prompts, outputs, **kwargs)`, which returns a dict of lists, a number a row.
        row_keys: the keys of the prompts' rows.

    Returns:
        The means, by name. A call that fails, or answers something else, is told in the log and gives none:
        no run ends by a figure.

    Raises:
        ValueError: it cannot be called so.
    """
    if not callable(function):
        raise ValueError(f"metric_fn is a {type(function).__name__}: it should be a function")
    asked = _by_keywords(function, "trlx", row_keys, "metric_fn")

    def means(groups: Sequence[Group]) -> dict[str, float]:
        pairs = [(group.prompt, rollout.text) for group in groups for rollout in group.rollouts]
        texts, outputs = [prompt.text for prompt, _ in pairs], [output for _, output in pairs]
        try:
            found = asked(texts, outputs, [prompt.metadata for prompt, _ in pairs])
            return {str(name): fmean(map(float, values)) for name, values in found.items()}
        except Exception as error:
            _logger.warning("metric_fn gave no figures: %s", describe(error))
            return {}

    return means


def _adapted(function: Callable[..., Any], row_keys: Collection[str]) -> JudgeFunction:
    form = form_of(function)
    if form != "ours":
        return _by_keywords(function, form, row_keys, "reward_fn")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return function
    try:
        signature.bind([], [], [])
    except TypeError:
        raise ValueError(f"reward_fn{signature} should be {_FORMS}") from None
    return function


def _by_keywords(
    function: Callable[..., Any], form: Form, row_keys: Collection[str], argument: str
) -> Callable[[list[str], list[str], list[Metadata]], Any]:
    """A function that is called with keywords, a list of values for each, as one of ours."""
    signature, own = inspect.signature(function), _OWN[form]
    names = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in names.values())
    keys = [key for key in row_keys if key not in _NOT_PASSED]
    taken = sorted(set(keys) & set(own))
    if taken:
        raise ValueError(f"rows have the key {taken[0]!r}, which {argument} gets as a keyword; rename it")
    wanted = [name for name in (*own, *keys) if takes_any or name in names]
    try:
        signature.bind(**dict.fromkeys(wanted))
    except TypeError as error:
        raise ValueError(
            f"{argument}{signature} cannot be called with the keywords {', '.join(wanted)}: {error}"
        ) from None
    columns_of = _trl_columns if form == "trl" else _trlx_columns

    def called(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> Any:
        columns = columns_of(prompts, responses, metadata)
        rows = {key: columns[key] if key in columns else [row.get(key) for row in metadata] for key in wanted}
        values = function(**rows)
        if form == "trl" and isinstance(values, list):
            return [math.nan if value is None else value for value in values]
        return values

    return called


def _trlx_columns(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> dict[str, list[Any]]:
    samples = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    return {"samples": samples, "prompts": prompts, "outputs": responses}


def _trl_columns(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> dict[str, list[Any]]:
    """Texts, or of chats the messages and a list of the assistant's."""
    asked: list[Any] = list(prompts)
    answered: list[Any] = list(responses)
    for place, row in enumerate(metadata):
        if isinstance(chat := row.get("messages"), list):
            content = f"{row.get(PREFILLED) or ''}{responses[place]}"
            asked[place], answered[place] = chat, [{"role": "assistant", "content": content}]
    return {"prompts": asked, "completions": answered}


def _identity(function: Any) -> tuple[str, str]:
    """Name and source, as far as there are any."""
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError, SyntaxError, TokenError):  # none, or its file is another one by now
        source = ""
    return f"{named.__module__}.{named.__qualname__}", source
