"""What a chain of selectors comes to: what has to hold among its keys, how much it keeps at most, in words.

Left out on purpose: a guess of how much a chain will keep. What passes a bar depends on the judge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from rs_aligner.config.base import function_problems, problem
from rs_aligner.config.selection import (
    AllConfig,
    DistinctAnswersConfig,
    DiverseConfig,
    DuplicatesConfig,
    FunctionConfig,
    LengthConfig,
    MedianConfig,
    NearDuplicatesConfig,
    PassRateConfig,
    PercentileConfig,
    PositiveConfig,
    SelectorConfig,
    ThresholdConfig,
    TopFractionConfig,
    TopKConfig,
    TruncatedConfig,
)

_logger = logging.getLogger("rs_aligner")


def check_selection(
    selectors: Sequence[SelectorConfig],
    *,
    top_n: int,
    min_reward: float | None,
    most_rollouts: tuple[str, int] | None,
) -> Iterator[str]:
    """What has to hold among the keys of a chain, a line for each problem.

    Args:
        selectors: `model.rs.selection`.
        top_n: `model.rs.top_n_rollouts`.
        min_reward: `model.rs.min_reward`.
        most_rollouts: the key that bounds the rollouts of a prompt, and its value; None where files tell.
    """
    if selectors and min_reward is not None:
        instead = f"model.rs.selection=[{{name: threshold, at_least: {min_reward:g}}}, ...]"
        yield problem("model.rs.min_reward", min_reward, f"has no place beside a chain; write {instead}")
    if selectors and top_n != 1 and not any(s.name == "topk" and s.k is None for s in selectors):
        _logger.warning("model.rs.top_n_rollouts has no effect: model.rs.selection has no topk without k")
    for i, selector in enumerate(selectors):
        key = f"model.rs.selection.{i}"
        match selector:
            case TopKConfig(k=int(k)) | DiverseConfig(k=k) | DistinctAnswersConfig(k=k):
                if most_rollouts is not None and k > most_rollouts[1]:
                    bound, most = most_rollouts
                    yield problem(f"{key}.k", k, f"should be at most {bound} = {most}")
            case PercentileConfig(start=start, end=end) if start > end:
                yield problem(f"{key}.start", start, f"should be at most {key}.end = {end}")
            case LengthConfig(min_tokens=None, max_tokens=None):
                yield f"{key}: nothing is set; set {key}.min_tokens, {key}.max_tokens or both"
            case LengthConfig(min_tokens=int(least), max_tokens=int(most_tokens)) if least > most_tokens:
                yield problem(
                    f"{key}.min_tokens", least, f"should be at most {key}.max_tokens = {most_tokens}"
                )
            case PassRateConfig(min=None, max=None):
                yield f"{key}: nothing is set; set {key}.min, {key}.max or both"
            case PassRateConfig(min=float(low), max=float(high)) if low >= high:
                yield problem(f"{key}.min", low, f"should be below {key}.max = {high}")
            case FunctionConfig(function=function):
                yield from function_problems(f"{key}.function", function)


def most_kept(
    selectors: Sequence[SelectorConfig],
    *,
    top_n: int,
    num_prompts: int,
    num_rollouts: int,
    num_candidates: int | None = None,
) -> int:
    """Most rollouts that a step can keep, of `num_prompts` prompts with at most `num_rollouts` rollouts each.

    A bound, not a guess: what passes bars and filters is counted as if all did, and equal rewards tie.
    `num_candidates` is how many rollouts all prompts have together at most; None if each may have that many.
    """
    each, whole = num_rollouts, num_prompts * num_rollouts
    whole = whole if num_candidates is None else min(whole, num_candidates)
    for selector in selectors or (TopKConfig(name="topk"),):
        match selector:
            case TopKConfig():
                each = min(each, selector.k or top_n)
            case DiverseConfig():
                each = min(each, selector.k)
            case MedianConfig():
                each, whole = each // 2, whole // 2
            case TopFractionConfig() if whole:
                whole = max(1, int(selector.fraction * whole + 1e-9))
        whole = min(whole, num_prompts * each)
    return whole


def in_words(selectors: Sequence[SelectorConfig], top_n: int) -> str:
    """A chain for the plan, such as `not truncated, then above 0, then the best 4`."""
    return ", then ".join(_in_words(selector, top_n) for selector in selectors)


def _in_words(selector: SelectorConfig, top_n: int) -> str:
    match selector:
        case TopKConfig():
            return f"the best {selector.k or top_n}"
        case PercentileConfig():
            rising = "" if selector.start == selector.end else f", rising to {selector.end:g}"
            lowest = ", above the step's lowest" if selector.above_lowest else ""
            return f"from the {selector.start:g} quantile of the prompt up{rising}{lowest}"
        case ThresholdConfig():
            return f"scored {selector.at_least:g} or more"
        case PositiveConfig():
            return f"scored above {selector.above:g}"
        case TopFractionConfig():
            return f"the best {100 * selector.fraction:g}% of the step"
        case MedianConfig():
            return "above the prompt's median"
        case AllConfig():
            return "all that is left"
        case TruncatedConfig():
            return "not truncated"
        case LengthConfig():
            least = f"{selector.min_tokens or 0:,}"
            return (
                f"{least} tokens or more"
                if selector.max_tokens is None
                else (f"{least} to {selector.max_tokens:,} tokens")
            )
        case DuplicatesConfig():
            where = {"group": "", "earlier": " of earlier steps", "both": ", nor of earlier steps"}
            return f"no duplicates{where[selector.against]}"
        case NearDuplicatesConfig():
            return f"no near-duplicates ({selector.measure}, {selector.similarity:g})"
        case DistinctAnswersConfig():
            return f"at most {selector.k} of each answer"
        case PassRateConfig():
            bounds = (("above", selector.min), ("below", selector.max))
            told = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
            return f"of prompts with a pass rate {' and '.join(told)}"
        case FunctionConfig():
            return f"what {selector.function} keeps"
        case DiverseConfig():
            return f"the {selector.k} most different"
