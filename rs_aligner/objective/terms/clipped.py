"""The clipped surrogate (`model.rs.objective.clip`): rows learnt by their ratio to the sampling policy.

Its figure `clip_fraction` is the share of these rows' response tokens that are clipped, before the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rs_aligner.config.objective import ObjectiveConfig
from rs_aligner.loss import clipped_surrogate, clipped_tokens
from rs_aligner.objective.terms.base import Inputs, Share, Term
from rs_aligner.rollout import TrainingRow

FIGURE = "clip_fraction"


class ClippedSurrogate(Term):
    """`loss.clipped_surrogate` of rows with the sampler's log-probabilities.

    Args:
        bounds: how far below and above 1 a ratio may go; None where there are to be no such rows.
    """

    def __init__(self, bounds: tuple[float, float] | None) -> None:
        self.bounds = bounds

    @classmethod
    def of(cls, objective: ObjectiveConfig) -> Self:
        """As `clip` and `clip_high` say."""
        return cls(objective.bounds)

    def counts(self, rows: Sequence[TrainingRow]) -> dict[str, int]:
        """The tokens with a ratio.

        Raises:
            ValueError: there are some, and no bounds to clip them to.
        """
        tokens = sum(len(row.sampled_log_probs) for row in rows)
        if tokens and self.bounds is None:
            raise ValueError("rows have the sampler's log-probabilities: set model.rs.objective.clip")
        return {FIGURE: tokens}

    def share(self, inputs: Inputs) -> Share:
        """Of the rows with ratios."""
        sampled_BT = inputs.sampled_log_probs
        if sampled_BT is None:
            return Share()
        assert self.bounds is not None
        assert inputs.weights is not None
        low, high = self.bounds
        mask_BT = ~sampled_BT.isnan()
        loss = clipped_surrogate(
            inputs.log_probs,
            sampled_BT,
            inputs.weights,
            mask_BT,
            inputs.denominator,
            inputs.normalization,
            clip_low=low,
            clip_high=high,
        )
        clipped_BT = clipped_tokens(
            inputs.log_probs, sampled_BT, inputs.weights, mask_BT, clip_low=low, clip_high=high
        )
        return Share(loss, {FIGURE: clipped_BT.sum() / inputs.counts[FIGURE]})
