"""The plain recipe: the weighted negative log-likelihood of every row that is not learnt by ratios."""

from __future__ import annotations

from typing import Self

from rs_aligner.config.objective import ObjectiveConfig
from rs_aligner.loss import masked_nll
from rs_aligner.objective.terms.base import Inputs, Share, Term


class NegativeLogLikelihood(Term):
    """`loss.masked_nll` of rows without the sampler's log-probabilities; there always is this term."""

    @classmethod
    def of(cls, objective: ObjectiveConfig) -> Self:
        """It has no settings: weights are the rows'."""
        return cls()

    def share(self, inputs: Inputs) -> Share:
        """A loss, if only zero, in every micro-batch."""
        sampled_BT, mask_BT = inputs.sampled_log_probs, inputs.mask
        if sampled_BT is not None:
            mask_BT = mask_BT & sampled_BT.isnan()
        loss = masked_nll(
            inputs.log_probs, mask_BT, inputs.denominator, inputs.normalization, weights=inputs.weights
        )
        return Share(loss)
