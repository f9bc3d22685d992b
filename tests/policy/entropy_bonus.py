"""A term that needs logits, as somebody else would write one: a bonus for the entropy of the next token.

The whole of it is this file and a line: `TERMS.append(EntropyBonus.of)`. (A term of the package has a key in
`config/objective.py` that `of` reads; this one has none, and is added where a case wants it.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rs_aligner.config import ObjectiveConfig
from rs_aligner.objective.terms import Inputs, Share, Term
from rs_aligner.rollout import TrainingRow

BONUS = 0.5


class EntropyBonus(Term):
    """`-BONUS` times the entropy, a mean as the loss is; the figure `entropy` is the mean over tokens."""

    needs_logits = True

    @classmethod
    def of(cls, objective: ObjectiveConfig) -> EntropyBonus:
        return cls()

    def counts(self, rows: Sequence[TrainingRow]) -> dict[str, int]:
        return {"entropy": sum(len(row.response) for row in rows)}

    def share(self, inputs: Inputs) -> Share:
        assert inputs.logits is not None
        log_p_BTV = inputs.logits.log_softmax()
        entropy_BT = -inputs.logits.total(log_p_BTV.exp() * log_p_BTV)
        entropy_BT = torch.where(inputs.mask, entropy_BT, 0.0)
        figure = entropy_BT.sum() / inputs.counts["entropy"]
        return Share(-BONUS * inputs.normalized(entropy_BT, inputs.mask), {"entropy": figure})
