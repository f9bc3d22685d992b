"""Megatron's layer, of which what attention and MLP put out is not just added to the residual stream.

Left out on purpose: norms and activations themselves (`modules.py`), and dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer


class Join(torch.nn.Module):
    """How an output comes to the residual stream.

    Called as Megatron calls it: first for the function that adds.

    Args:
        norm: of what is added; None for none.
        scale: what is added is multiplied by it.
    """

    def __init__(self, norm: torch.nn.Module | None, scale: float) -> None:
        super().__init__()
        self.norm, self.scale = norm, scale

    def forward(self, training: bool, fused: bool) -> Callable[..., torch.Tensor]:
        return self._add

    def joining(self, output: torch.Tensor) -> torch.Tensor:
        """What is added for an output, its bias inside."""
        if self.norm is not None:
            output = self.norm(output)
        return output if self.scale == 1 else output * self.scale

    def _add(
        self, output: tuple[torch.Tensor, torch.Tensor | None], residual: torch.Tensor, dropout: float
    ) -> torch.Tensor:
        found, bias = output
        return residual + self.joining(found if bias is None else found + bias)


class JoinedLayer(TransformerLayer):
    """Megatron's layer with a `Join` behind attention and one behind the MLP.

    Args:
        config: the model's.
        after: makes the norms of what is added; None where there are none.
        scale: what is added is multiplied by it.
        how: what else Megatron gives its layer.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *args: Any,
        after: type[torch.nn.Module] | None = None,
        scale: float = 1.0,
        **how: Any,
    ) -> None:
        super().__init__(config, *args, **how)
        for name in ("self_attn_bda", "mlp_bda"):
            norm = None
            if after is not None:
                norm = after(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
            setattr(self, name, Join(norm, scale))
