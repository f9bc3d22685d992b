"""`model.rs.objective`: what is minimised over the rollouts that were kept.

The plain recipe is the default: every kept rollout weighs 1 and its negative log-likelihood is minimised.
Each key adds one term or weight to it; `rs_aligner/objective/rows.py` and `loss.py` say what they compute.
Left out on purpose: a learned value function, and an entropy bonus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rs_aligner.config.base import (
    Beta,
    Fraction,
    NotNegative,
    Positive,
    Section,
    Texts,
    data_problems,
    problem,
)

KLEstimator = Literal[
    "k1", "kl", "k2", "mse", "k3", "low_var_kl", "abs", "k1+", "kl+", "k3+", "low_var_kl+", "abs+"
]


class AnchorConfig(Section):
    """Supervised rows that are mixed in, so that the policy does not drift from them."""

    files: Texts = ()
    """Files of {"prompt", "response"} rows or chats: a path or a list of paths; empty for none."""
    share: Beta = 0.0
    """Their share of every batch, from 0 (none) to below 1."""
    weight: Positive = 1.0
    """What their log-likelihood is multiplied by."""

    def problems(self, key: str) -> Iterator[str]:
        """There are files if there is a share of them, and the other way round."""
        if self.share and not self.files:
            yield problem(f"{key}.share", self.share, f"needs {key}.files to take rows from; or set it to 0")
        if self.files and not self.share:
            yield problem(f"{key}.share", self.share, f"should be above 0, since {key}.files is set")
        if self.weight != 1 and not self.files:
            yield problem(f"{key}.weight", self.weight, f"needs {key}.files; or set it to 1")
        yield from data_problems(f"{key}.files", self.files)


class ObjectiveConfig(Section):
    """What is minimised; the default is the plain recipe."""

    advantage: Literal["none", "group", "leave_one_out"] = "none"
    """What a kept rollout weighs.

    `none`: 1. `group`: its reward minus the mean of its prompt's scored rollouts, over their standard
    deviation. `leave_one_out`: its reward minus the mean of the others. Rollouts of weight 0 are dropped.
    """
    positives_only: bool = False
    """Drops rollouts whose advantage is not above 0."""
    clip: Fraction | None = None
    """Clips the ratio of the new to the sampling policy's probability from below, at 1 - clip, and above.

    Null for no ratios: the log-likelihood is weighted by the advantage.
    """
    clip_high: Positive | None = None
    """Clips it from above at 1 + clip_high; null for the same as `clip`."""
    kl: NotNegative = 0.0
    """Weight of the KL divergence to the starting policy; 0 for none."""
    kl_estimator: KLEstimator = "k3"
    """What that divergence is estimated by, on the trained tokens.

    `k1` (or `kl`), `k2` (`mse`), `k3` (`low_var_kl`), `abs`; with a `+` the value of that one and the
    gradient of k2, which on sampled tokens is that of the divergence. docs/objective.md has both of each.
    """
    offload_reference: bool = True
    """Keeps the starting weights in the CPU's memory; false keeps them on the device, which saves copies."""
    anchor: AnchorConfig = AnchorConfig()

    @property
    def bounds(self) -> tuple[float, float] | None:
        """How far below and above 1 a ratio may go; None if there are no ratios."""
        if self.clip is None:
            return None
        return self.clip, self.clip if self.clip_high is None else self.clip_high

    def problems(self, key: str) -> Iterator[str]:
        """What is set plays a part."""
        advantage = f"needs {key}.advantage, group or leave_one_out"
        if self.advantage == "none" and self.positives_only:
            yield problem(f"{key}.positives_only", True, f"{advantage}; set it to false")
        if self.advantage == "none" and self.clip is not None:
            yield problem(f"{key}.clip", self.clip, f"{advantage}; set it to null")
        if self.kl_estimator != "k3" and not self.kl:
            weight = f"needs {key}.kl, the weight of the term; set it to k3"
            yield problem(f"{key}.kl_estimator", self.kl_estimator, weight)
        if self.clip_high is not None and self.clip is None:
            below = f"needs {key}.clip, the bound from below; set it to null"
            yield problem(f"{key}.clip_high", self.clip_high, below)


PLAIN = ObjectiveConfig()
"""The plain recipe."""


def num_anchors(num_rows: int, share: float) -> int:
    """How many supervised rows go with so many others to be `share` of all; at least one, if any.

    For the plan: a step has `num_rows + num_anchors(num_rows, share)` rows.
    """
    if not num_rows or not share:
        return 0
    return max(1, round(num_rows * share / (1 - share)))
