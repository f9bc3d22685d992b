"""What a chain of selectors comes to: how much it keeps at most, and in words.

Left out on purpose: what each selector adds to that, which is its section's (`selector.py`, `selection.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rs_aligner.config.selection import TopKConfig
from rs_aligner.config.selector import Most, SelectorSection


def most_kept(
    selectors: Sequence[SelectorSection],
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
    whole = num_prompts * num_rollouts
    left = Most(num_rollouts, whole if num_candidates is None else min(whole, num_candidates))
    for selector in selectors or (TopKConfig(name="topk"),):
        left = selector.with_top_n(top_n).keeps(left)
        left = Most(left.each, min(left.whole, num_prompts * left.each))
    return left.whole


def in_words(selectors: Sequence[SelectorSection], top_n: int) -> str:
    """A chain for the plan, such as `not truncated, then scored above 0, then the best 4`."""
    return ", then ".join(selector.with_top_n(top_n).in_words() for selector in selectors)
