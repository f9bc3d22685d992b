"""The best of each row: the plain recipe's choice, as one tensor function.

A pure function of the rewards (ties go to the lower index), so every rank that holds the same rewards comes
to the same mask. Groups are rows by construction. Nothing here looks at a prompt's text.

Left out on purpose: groups of unequal size (fill the rows up, and mark the places that do not exist as not
scored) and every other way to choose, which are selectors of a chain.
"""

from __future__ import annotations

import torch
from torch import Tensor


def select_topk(rewards: Tensor, num_select: int, scored: Tensor | None = None) -> Tensor:
    """Keeps the highest scored rewards of each row.

    Ties go to the lower index. A row with fewer than `num_select` scored rollouts keeps those it has.

    Args:
        rewards: float `[P, N]`, a row per prompt. What stands at unscored places is never read.
        num_select: how many to keep of each row, from 1 to N.
        scored: bool `[P, N]`, False where the judge failed; all True by default.

    Returns:
        bool `[P, N]`, True where kept.

    Raises:
        ValueError: `num_select` is below 1 or above N, a shape or type does not fit, or a reward is NaN
            or infinite at a scored place.
    """
    scored = _checked(rewards, scored)
    num_rollouts = rewards.shape[1]
    if not 1 <= num_select <= num_rollouts:
        raise ValueError(
            f"num_select must be from 1 to the {num_rollouts} rollouts per prompt, not {num_select}"
        )
    # Adding 0.0 makes -0.0 equal to 0.0 for sorts that compare bits; float64 holds every reward exactly.
    sortable_PN = torch.where(scored, rewards.double() + 0.0, -torch.inf)
    order_PN = sortable_PN.argsort(dim=1, descending=True, stable=True)
    keep_PN = torch.zeros_like(scored)
    keep_PN.scatter_(1, order_PN[:, :num_select], True)
    return keep_PN & scored


def _checked(rewards: Tensor, scored: Tensor | None) -> Tensor:
    """Returns `scored`, filled in when absent, after checking that the two fit together."""
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be [prompts, rollouts], not {list(rewards.shape)}")
    if scored is None:
        scored = torch.ones_like(rewards, dtype=torch.bool)
    if scored.shape != rewards.shape or scored.dtype != torch.bool:
        raise ValueError(
            f"scored must be boolean and of the shape of rewards, {list(rewards.shape)}, "
            f"not {scored.dtype} {list(scored.shape)}"
        )
    wrong_PN = scored & ~torch.isfinite(rewards)
    if wrong_PN.any():
        prompt, rollout = wrong_PN.nonzero()[0].tolist()
        raise ValueError(
            f"the reward of prompt {prompt}, rollout {rollout} is {float(rewards[prompt, rollout])}; "
            "a score is finite, and a judge's failure is marked in scored"
        )
    return scored
