"""From the config's `judge` to the judge itself: what comes with RS Aligner, and what users bring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from rs_aligner.config import JudgeConfig, JudgePart, JudgeSource
from rs_aligner.reward.judges.base import ServedJudge, Value, content_hash
from rs_aligner.reward.judges.code import CodeJudge
from rs_aligner.reward.judges.combined import WeightedJudge
from rs_aligner.reward.judges.functions import FunctionJudge, bind, smoke_test
from rs_aligner.reward.judges.generative import OpenAIJudge
from rs_aligner.reward.judges.huggingface import HuggingFaceJudge
from rs_aligner.reward.judges.limit import LimitedJudge
from rs_aligner.reward.judges.megatron import MegatronJudge
from rs_aligner.reward.judges.rules import format_rules, length, regex
from rs_aligner.reward.judges.sentiment import sentiment
from rs_aligner.reward.judges.verifiers import FinalAnswer, choice, exact_answer

BUILT_IN: dict[str, Callable[..., Sequence[Value]] | type[ServedJudge]] = {
    "exact_answer": exact_answer,
    "final_answer": FinalAnswer,
    "choice": choice,
    "code": CodeJudge,
    "regex": regex,
    "length": length,
    "format": format_rules,
    "sentiment": sentiment,
    "huggingface": HuggingFaceJudge,
    "megatron_reward_model": MegatronJudge,
    "openai": OpenAIJudge,
}
"""Functions, and classes that are made with `judge.kwargs`."""

# A user's regular expression may take for ever, like a user's function.
_LIMITED = {"regex": "rs_aligner.reward.judges.rules:regex"}

# These keep to the limit themselves.
_TIMED = {"code", "final_answer", "openai"}

# And these have workers of their own.
_SPREAD = {"code"}


def load_judge(cfg: JudgeSource) -> ServedJudge:
    """Find the judge that the config names, with its settings.

    Args:
        cfg: exactly one of `function` (`path/to/file.py:name` or `package.module:name`), `name` (a built-in
            judge) and `parts`; `kwargs` are its further keyword arguments.

    Returns:
        The judge, to be closed by the caller.

    Raises:
        ValueError: no such file, module or function, something that cannot be called as a judge, settings
            that it does not take, or a judge that is broken whatever the rows.
    """
    parts = cfg.parts if isinstance(cfg, JudgeConfig) else {}
    if sum((cfg.function is not None, cfg.name is not None, bool(parts))) != 1:
        raise ValueError(
            "set exactly one of judge.function (path/to/file.py:name or package.module:name), "
            f"judge.name (one of {', '.join(BUILT_IN)}) and judge.parts"
        )
    if parts:
        return _weighted(parts)
    if cfg.name is not None:
        return _built_in(cfg.name, cfg)
    assert cfg.function is not None
    return LimitedJudge(cfg.function, cfg.kwargs, cfg.time_limit, cfg.workers)


def _built_in(name: str, cfg: JudgeSource) -> ServedJudge:
    found, kwargs, time_limit = BUILT_IN[name], cfg.kwargs, cfg.time_limit
    if isinstance(found, type):
        if name in _TIMED:
            kwargs = {"time_limit": time_limit, **kwargs}
        if name in _SPREAD:
            kwargs = {"workers": cfg.workers, **kwargs}
        try:
            inspect.signature(found).bind(**kwargs)
        except TypeError as error:
            raise ValueError(f"judge.kwargs: {name} does not take them: {error}") from None
        return found(**kwargs)
    function = bind("judge.name", name, found, kwargs)
    if name in _LIMITED and (time_limit is not None or cfg.workers > 1):
        return LimitedJudge(_LIMITED[name], kwargs, time_limit, cfg.workers)
    judge = FunctionJudge(function, content_hash(name, kwargs))
    smoke_test(judge)
    return judge


def _weighted(parts: Mapping[str, JudgePart]) -> ServedJudge:
    loaded: dict[str, tuple[float, ServedJudge]] = {}
    try:
        for name, part in parts.items():
            loaded[name] = part.weight, load_judge(part)
    except ValueError as error:
        for _, judge in loaded.values():
            judge.close()
        raise ValueError(f"judge.parts.{name}: {error}") from None
    return WeightedJudge(loaded)
