"""Causal attention over whole rows by torch, where a layer has more to say than which tokens come before.

Training and the decoder's prefill share it. Left out on purpose: rotation, kernels of our own and lines
(`attention.py`), and attention of one token to a cache (`generation/sharing.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from rs_aligner.model.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Rule:
    """How the scores of a layer become weights.

    Attributes:
        scale: what products of queries and keys are multiplied by.
        window: how many tokens a token sees, itself among them; None for all before it.
        cap: scores are bent so that they stay below; None where they are not.
    """

    scale: float
    window: int | None = None
    cap: float | None = None

    @classmethod
    def of(cls, arch: Architecture, layer: int) -> Rule:
        """That of a layer, by its number in the whole model."""
        return cls(arch.score_scale, arch.window(layer), arch.scales.score_cap)

    def hides(self, length: int) -> bool:
        """Whether something before the last token of a row of such a length is out of its sight."""
        return self.window is not None and length > self.window

    def seen(self, length: int, device: torch.device) -> torch.Tensor:
        """Which tokens of a row each of them sees: bool `[S, S]`."""
        seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return seen if self.window is None else seen.triu(1 - self.window)


def attend_causally(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Attention of whole rows, all `[B, heads, S, dim]`; keys and values may have fewer heads.

    Padding on the right is out of sight of all before it.
    """
    length = query.shape[2]
    hides = rule.hides(length)
    if rule.cap is not None:
        return _attend_capped(query, key, value, rule, rule.cap)
    return functional.scaled_dot_product_attention(
        *(query, key, value),
        attn_mask=rule.seen(length, query.device) if hides else None,
        is_causal=not hides,
        scale=rule.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, cap: float
) -> torch.Tensor:
    """With all scores in memory: no fused kernel of torch's bends them."""
    queries = query.unflatten(1, (key.shape[1], -1))
    scores = bent(queries @ key.unsqueeze(2).mT * rule.scale, cap)
    hidden = ~rule.seen(query.shape[2], query.device)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value.unsqueeze(2)).flatten(1, 2)


def bent(x: torch.Tensor, cap: float) -> torch.Tensor:
    """Numbers that stay between `-cap` and `cap`, and are nearly what they were where they are small.

    Source: Gemma team, "Gemma 2" (2024), section 2, "logit soft-capping".
    """
    return (x / cap).tanh() * cap
