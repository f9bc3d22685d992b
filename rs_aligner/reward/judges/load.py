"""From the config's `judge` to the judge itself: what comes with RS Aligner, and what users bring."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rs_aligner.reward.judges.base import JudgeFunction, Metadata, ServedJudge, content_hash, score_rows
from rs_aligner.reward.judges.functions import FunctionJudge, bind, users_judge
from rs_aligner.reward.judges.limit import LimitedJudge
from rs_aligner.reward.judges.megatron import MegatronRewardModel
from rs_aligner.reward.judges.sentiment import sentiment
from rs_aligner.reward.judges.verifiers import exact_answer
from rs_aligner.rollout import Score

if TYPE_CHECKING:
    from rs_aligner.config import JudgeConfig

_logger = logging.getLogger("rs_aligner")

BUILT_IN: dict[str, JudgeFunction | type[ServedJudge]] = {
    "exact_answer": exact_answer,
    "sentiment": sentiment,
    "megatron_reward_model": MegatronRewardModel,
}
"""Functions, and classes that are made with `judge.kwargs`."""


def load_judge(cfg: JudgeConfig) -> ServedJudge:
    """Find the judge that the config names, with its settings.

    Args:
        cfg: exactly one of `function` (`path/to/file.py:name` or `package.module:name`) and `name` (a
            built-in judge), and `kwargs`, its further keyword arguments.

    Returns:
        The judge, to be closed by the caller.

    Raises:
        ValueError: no such file, module or function, something that cannot be called as a judge, settings
            that it does not take, or a judge that is broken whatever the rows.
    """
    if (cfg.function is None) == (cfg.name is None):
        raise ValueError(
            "set exactly one of judge.function (path/to/file.py:name or package.module:name) and "
            f"judge.name (one of {', '.join(BUILT_IN)})"
        )
    if cfg.function is not None and cfg.time_limit is not None:
        return LimitedJudge(cfg.function, cfg.kwargs, cfg.time_limit)
    if cfg.function is not None:
        judge, warning = users_judge(cfg.function, cfg.kwargs)
        if warning is not None:
            _logger.warning("%s", warning)
        return judge
    assert cfg.name is not None
    return _built_in(cfg.name, cfg.kwargs)


def rewards_of(judge: ServedJudge) -> Callable[[list[str], list[str], list[Metadata]], list[float]]:
    """A judge as a plain function of texts, NaN where there is no score."""

    def rewards(prompts: list[str], responses: list[str], metadata: list[Metadata]) -> list[float]:
        scores = score_rows(judge.score_texts, (prompts, responses, metadata), max_rows=64)
        return [score.reward if isinstance(score, Score) else math.nan for score in scores]

    return rewards


def _built_in(name: str, kwargs: dict[str, Any]) -> ServedJudge:
    found = BUILT_IN[name]
    if isinstance(found, type):
        try:
            return found(**kwargs)
        except TypeError as error:
            raise ValueError(f"judge.kwargs: {name} does not take them: {error}") from None
    judge = bind("judge.name", name, found, kwargs)
    if name == "sentiment":
        judge([], [], [])  # is its package there?
    return FunctionJudge(judge, content_hash(name, kwargs))
