"""What both ways of decoding are handed, and what they hand back."""

from __future__ import annotations

from dataclasses import dataclass

from rs_aligner.rollout import FinishReason, Prompt


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout in the making: which it is, and the most tokens that it may have."""

    group: int
    index: int
    seed: int
    prompt: Prompt
    limit: int


Ended = tuple[RolloutRow, list[int], list[float], FinishReason]
"""A rollout that has ended: its tokens, their log-probabilities, and why."""
