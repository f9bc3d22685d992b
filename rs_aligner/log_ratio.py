"""Of the log-probabilities that two policies give a token: difference and ratio, and what is made of them.

`loss` takes both over a batch. Left out on purpose: masks, and how tokens are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # of two policies; e^20 times as likely is a broken policy, not a large step
_K2 = ("k2", "mse")
KL_ESTIMATORS = ("k1", "kl", *_K2, "k3", "low_var_kl", "abs")
"""Of `kl_to_reference`; behind each but k2 there may be a `+`."""


def in_bounds(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """A log ratio up to `MAX_LOG_RATIO`, and what is beyond: `exp(low) * (1 + beyond)` has a gradient there.

    An exponential that is not bounded is infinite, and that is NaN in the gradient even where it is clipped.
    At the bound itself one of the two has a gradient: `clamp` would give it to both, or, from torch 2.14 on,
    to none.
    """
    is_beyond = log_ratio >= MAX_LOG_RATIO
    return (
        torch.where(is_beyond, MAX_LOG_RATIO, log_ratio),
        torch.where(is_beyond, log_ratio - MAX_LOG_RATIO, 0.0),
    )


def clip(values: Tensor, low: float, high: float) -> Tensor:
    """`clamp`, with a gradient at the bounds, where nothing is clipped: torch has none there from 2.14 on."""
    values = torch.where(values < low, low, values)
    return torch.where(values > high, high, values)


def kl_estimate(difference: Tensor, estimator: str) -> Tensor:
    """k(d) of `kl_to_reference`, of any shape: d is the reference's log-probability less the policy's.

    Raises:
        ValueError: there is no such estimator.
    """
    name = estimator.removesuffix("+")
    is_straight_through = estimator.endswith("+")
    if name not in KL_ESTIMATORS or (is_straight_through and name in _K2):
        known = ", ".join(KL_ESTIMATORS)
        raise ValueError(f"estimator must be one of {known}, or one but k2 with a +, not {estimator!r}")
    k2 = difference.square() / 2
    if name in _K2:
        return k2
    if name in ("k1", "kl"):
        value = -difference
    elif name == "abs":
        value = difference.abs()
    else:
        # expm1 keeps what `exp(d) - 1` would round away where the two policies nearly agree.
        low, beyond = in_bounds(difference)
        value = low.expm1() + low.exp() * beyond - difference
    return value.detach() + (k2 - k2.detach()) if is_straight_through else value
