"""A term that needs two policies' logits: the divergence from the starting policy over the whole vocabulary.

As `entropy_bonus.py`: this file and a line, `TERMS.append(FullKL.of)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rs_aligner.config import ObjectiveConfig
from rs_aligner.objective.terms import Inputs, Share, Term
from rs_aligner.rollout import TrainingRow

WEIGHT = 0.7


class FullKL(Term):
    """`WEIGHT` times KL(policy to start), a mean as the loss is; the figure is its mean over tokens."""

    needs_logits = True
    needs_reference_logits = True

    @classmethod
    def of(cls, objective: ObjectiveConfig) -> FullKL:
        return cls()

    def counts(self, rows: Sequence[TrainingRow]) -> dict[str, int]:
        return {"full_kl": sum(len(row.response) for row in rows)}

    def share(self, inputs: Inputs) -> Share:
        assert inputs.logits is not None
        assert inputs.reference_logits is not None
        log_p_BTV, log_q_BTV = inputs.logits.log_softmax(), inputs.reference_logits.log_softmax()
        kl_BT = inputs.logits.total(log_p_BTV.exp() * (log_p_BTV - log_q_BTV))
        kl_BT = torch.where(inputs.mask, kl_BT, 0.0)
        loss = WEIGHT * inputs.normalized(kl_BT, inputs.mask)
        return Share(loss, {"full_kl": kl_BT.sum() / inputs.counts["full_kl"]})
