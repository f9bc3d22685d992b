"""Who is kept, and why: the best rollouts of each prompt.

A step is selected as a whole, one row of rewards per prompt in data order. The choice is a pure function
of the rewards (ties go to the lower index), so every rank that holds the same rewards comes to the same
mask. Groups are rows by construction. Nothing here looks at a prompt's text.

Left out on purpose: groups of unequal size and strategies other than best-of-N. One of those would
return the same `Selection` and come with a mask of the places that exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rs_aligner.rollout import Group

KEPT = "kept"
NOT_IN_TOP = "not in the top n"
BELOW_MIN_REWARD = "below min_reward"
NOT_SCORED = "not scored"


@dataclass(frozen=True, slots=True)
class Selection:
    """What became of each rollout of a step.

    Attributes:
        keep: bool `[P, N]`, True where the rollout is trained on.
        reasons: `[P][N]`, why: `kept`, `not in the top n`, `below min_reward` or `not scored`.
    """

    keep: Tensor
    reasons: tuple[tuple[str, ...], ...]


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


def select(rewards: Tensor, scored: Tensor, num_select: int, min_reward: float | None = None) -> Selection:
    """Keeps the best `num_select` of each prompt among those that reach `min_reward`.

    What scores below `min_reward` is rejected first, so a prompt that nobody solved keeps nothing.

    Args:
        rewards: float `[P, N]`, a row per prompt in data order.
        scored: bool `[P, N]`, False where the judge failed.
        num_select: how many to keep of each prompt at most (`model.rs.top_n_rollouts`).
        min_reward: the least reward that may be kept (`model.rs.min_reward`); None for no bound.

    Returns:
        The keep mask with a reason for each rollout.

    Raises:
        ValueError: as `select_topk`, or `min_reward` is NaN.
    """
    scored = _checked(rewards, scored)
    good_enough_PN = scored
    if min_reward is not None:
        if min_reward != min_reward:
            raise ValueError("min_reward must be a number, not NaN")
        good_enough_PN = scored & (rewards >= min_reward)
    keep_PN = select_topk(rewards, num_select, good_enough_PN)
    reasons = tuple(
        tuple(
            KEPT if keep else NOT_IN_TOP if good_enough else BELOW_MIN_REWARD if is_scored else NOT_SCORED
            for keep, good_enough, is_scored in zip(*row, strict=True)
        )
        for row in zip(keep_PN.tolist(), good_enough_PN.tolist(), scored.tolist(), strict=True)
    )
    return Selection(keep=keep_PN, reasons=reasons)


def nothing_kept(groups: Sequence[Group], reason: str) -> Selection:
    """The selection of a step of which nothing is trained, all for the same reason."""
    sizes = [len(group.rollouts) for group in groups]
    keep_PN = torch.zeros(len(sizes), max(sizes, default=0), dtype=torch.bool)
    return Selection(keep=keep_PN, reasons=tuple((reason,) * size for size in sizes))


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
