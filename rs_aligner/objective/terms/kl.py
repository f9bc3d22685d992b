"""The KL term: how far the policy is from the one that the run started from (`model.rs.objective.kl`).

Its figure `kl` is the estimate `k3` in nats, mean over the response tokens that have a reference, before the
step, whatever is minimised. With a weight of 0 it is only measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch

from rs_aligner.config.objective import ObjectiveConfig
from rs_aligner.loss import kl_to_reference
from rs_aligner.objective.terms.base import Inputs, Share, Term
from rs_aligner.rollout import TrainingRow

FIGURE = "kl"


class KLToReference(Term):
    """`loss.kl_to_reference` of rows with log-probabilities under the starting policy.

    Args:
        weight: of the term.
        estimator: what is minimised.
    """

    def __init__(self, weight: float, estimator: str) -> None:
        self.weight, self.estimator = weight, estimator

    @classmethod
    def of(cls, objective: ObjectiveConfig) -> Self:
        """As `kl` and `kl_estimator` say."""
        return cls(objective.kl, objective.kl_estimator)

    def counts(self, rows: Sequence[TrainingRow]) -> dict[str, int]:
        """The tokens with a reference."""
        return {FIGURE: sum(len(row.reference_log_probs) for row in rows)}

    def share(self, inputs: Inputs) -> Share:
        """Of the rows with a reference."""
        reference_BT = inputs.reference_log_probs
        if reference_BT is None:
            return Share()
        mask_BT = ~reference_BT.isnan()
        loss = None
        if self.weight:
            loss = self.weight * kl_to_reference(
                inputs.log_probs,
                reference_BT,
                mask_BT,
                inputs.denominator,
                inputs.normalization,
                estimator=self.estimator,
            )
        with torch.no_grad():
            count = inputs.counts[FIGURE]
            figure = kl_to_reference(inputs.log_probs, reference_BT, mask_BT, count, "token")
        return Share(loss, {FIGURE: figure})
