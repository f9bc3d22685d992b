"""A mixture of experts in the place of an MLP: a router, and of all experts the few that it chooses.

Takes the place of Megatron's layer around its own experts, which are MLPs one beside the other. Every token
reaches all experts that are chosen for it: none is dropped, and no expert has a capacity, so what comes out
does not depend on the other tokens. Probabilities are float32 whatever the weights are, and of two that are
equal the expert with the lower number comes first. Left out on purpose: shared experts, biases and noise in
the router, and grouped products (experts are multiplied one by one).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import BaseMoELayer, MoELayer
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from torch.nn import functional

from rs_aligner.model.architecture import Experts


class Router(torch.nn.Module):
    """Which experts a token goes to, and how much each of them counts.

    Source: Jiang et al., "Mixtral of experts" (2024), section 2.1, as in `transformers`: the probabilities of
    all experts, of which the K largest are kept; normalised to a sum of 1 where the model has it so.

    Attributes:
        weight: `[E, width]`, whole on every rank.
    """

    def __init__(self, config: TransformerConfig, *, normalises: bool) -> None:
        super().__init__()
        assert config.num_moe_experts is not None
        self.per_token, self.normalises = config.moe_router_topk, normalises
        shape = config.num_moe_experts, config.hidden_size
        self.weight = torch.nn.Parameter(torch.zeros(shape, dtype=config.params_dtype))
        # Megatron reads it off a parameter.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # Megatron's mark

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What each token's experts count, float32, and their numbers: `[T, width]` to `[T, K]` each."""
        # In float32: in fewer bits many probabilities are equal, and rounding would choose.
        probabilities = functional.linear(tokens.float(), self.weight.float()).softmax(-1)
        ordered, numbers = probabilities.sort(dim=-1, descending=True, stable=True)
        chosen = ordered[:, : self.per_token]
        if self.normalises:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        return chosen, numbers[:, : self.per_token]


class Mixture(MoELayer):
    """Megatron's mixture of experts, its parameters and their names, with a forward pass of our own.

    Args:
        config: the model's.
        submodules: what an expert is made of.
        normalises: whether what the chosen experts count adds up to 1.
    """

    def __init__(self, config: TransformerConfig, submodules: MLPSubmodules, *, normalises: bool) -> None:
        groups = get_default_pg_collection()
        # What Megatron's own does besides is to make a dispatcher of tokens, which is not used here.
        BaseMoELayer.__init__(self, config, pg_collection=groups)
        self.router = Router(config, normalises=normalises)
        self.experts = SequentialMLP(self.num_local_experts, config, submodules, pg_collection=groups)

    def set_layer_number(self, layer_number: int) -> None:
        """Megatron tells it."""
        self.layer_number = layer_number

    def forward(
        self, hidden_states: torch.Tensor, intermediate_tensors: None = None, padding_mask: Any = None
    ) -> tuple[torch.Tensor, None]:
        """`[S, B, width]` to the same; there is no bias."""
        return self.mixed(hidden_states), None

    def mixed(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the experts make of each token, `[..., width]`, added up as the router says."""
        tokens = hidden.flatten(0, -2)
        counts_TK, numbers_TK = self.router(tokens)
        outputs = self._by_experts(tokens, numbers_TK)
        mixed = (outputs * counts_TK.unsqueeze(-1)).sum(1)
        return mixed.to(hidden.dtype).view_as(hidden)

    def _by_experts(self, tokens: torch.Tensor, numbers_TK: torch.Tensor) -> torch.Tensor:
        """What each token's experts make of it: `[T, K, width]`."""
        number_of = numbers_TK.flatten()
        order = number_of.argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        sizes = number_of.bincount(minlength=len(self.experts.local_experts)).tolist()
        inputs = _Ordered.apply(tokens, order, back, numbers_TK.shape[1]).split(sizes)
        outputs = [expert(rows)[0] for expert, rows in zip(self.experts.local_experts, inputs, strict=True)]
        return _Ordered.apply(torch.cat(outputs), back, order, 1).unflatten(0, numbers_TK.shape)


def mixture_of(experts: Experts, submodules: MLPSubmodules) -> type[Mixture]:
    """The layer of a model, as Megatron builds one without warning that it does not know it."""

    class Layer(Mixture):
        def __init__(
            self, config: TransformerConfig, **_: Any
        ) -> None:  # since 0.18 it names the groups, too
            super().__init__(config, submodules, normalises=experts.normalises)

    return Layer


class _Ordered(torch.autograd.Function):
    """Rows, each of them `copies` times, in another order; its gradients are added up without atomics."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, order: torch.Tensor, back: torch.Tensor, copies: int
    ) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return rows[order // copies] if copies > 1 else rows[order]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        grad = grads[0][back]
        return (grad.unflatten(0, (-1, ctx.copies)).sum(1) if ctx.copies > 1 else grad), None, None, None
