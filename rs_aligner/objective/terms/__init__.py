"""The terms of the objective, each with its loss and its figures: a file each, and a line in `TERMS`.

The optimizer step (`policy.training`) adds up what they come to and knows none of them.
"""

from collections.abc import Callable

from rs_aligner.config.objective import ObjectiveConfig
from rs_aligner.objective.terms.base import Inputs, Logits, Share, Term
from rs_aligner.objective.terms.clipped import ClippedSurrogate
from rs_aligner.objective.terms.kl import KLToReference
from rs_aligner.objective.terms.nll import NegativeLogLikelihood

__all__ = ["TERMS", "Inputs", "Logits", "Share", "Term", "compares_logits", "terms_of"]

TERMS: list[Callable[[ObjectiveConfig], Term | None]] = [
    NegativeLogLikelihood.of,
    ClippedSurrogate.of,
    KLToReference.of,
]
"""By config: a term, or None where it plays no part. Losses are added up in this order."""


def terms_of(objective: ObjectiveConfig) -> list[Term]:
    """The terms that an objective has."""
    return [term for make in TERMS if (term := make(objective)) is not None]


def compares_logits(objective: ObjectiveConfig) -> bool:
    """Whether a term of it asks for the starting policy's logits, so that its weights have to be kept."""
    return any(term.needs_reference_logits for term in terms_of(objective))
