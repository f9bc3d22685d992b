"""Modules of our own in Megatron's layers: norm, attention, and a reward model's head.

Megatron's local layer spec needs no further package. Its attention materialises the scores and its norm
refuses sequence parallelism, so both are replaced: attention by torch's fused kernel (flash attention on a
GPU), the norm by one that marks its weight as sequence-parallel.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from torch.nn import functional


class RMSNorm(torch.nn.Module):
    """Root mean square norm over the last dimension (Zhang and Sennrich, 2019), sequence-parallel aware."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron reads it off a parameter.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class FusedAttention(torch.nn.Module):
    """Causal attention by `scaled_dot_product_attention`, without dropout.

    Rows are padded on the right, so the causal mask alone keeps padding out of every real token.
    """

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        """`[S, B, heads, dim]` each; returns `[S, B, heads * dim]`."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3).flatten(2)


class ValueHead(torch.nn.Module):
    """One number for each position, `[S, B, 1]`: a linear map without bias, whole on every rank.

    Called as Megatron calls an output layer. Every tensor-parallel rank computes all of it from the
    same hidden states, so each has the whole gradient and nothing needs to be summed.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))

    def initialise(self, seed: int) -> None:
        """Draw new weights, the same on every rank: normal with variance 1 / (width + 1).

        Source: Stiennon et al., "Learning to summarize from human feedback" (2020), appendix B.1.
        """
        numbers = torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.weight.copy_(numbers / (self.weight.shape[1] + 1) ** 0.5)

    def forward(
        self, hidden: torch.Tensor, weight: None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, None]:
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        # In float32: bf16 has 8 bits for a number, and answers that differ would get the same reward.
        return functional.linear(hidden.float(), self.weight.float()), None
