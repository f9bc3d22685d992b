"""A mixture of experts in the place of an MLP: a router, and of all experts the few that it chooses.

Takes the place of Megatron's layer around its own experts, which are MLPs one beside the other. Replicas may
share them out (`expert_shares.py`), and tensor-parallel ranks have a part of each. Every token reaches all
experts that are chosen for it: none is dropped, and no expert has a capacity, so what comes out does not
depend on the other tokens. Probabilities are float32 whatever the weights are, and of two that are
equal the expert with the lower number comes first. Left out on purpose: shared experts, biases and noise in
the router, and grouped products (experts are multiplied one by one).
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    checkpoint,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.mappings import all_to_all
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import BaseMoELayer, MoELayer
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection
from torch.nn import functional

from rs_aligner.model.architecture import Experts
from rs_aligner.model.balance import Balance


class Router(torch.nn.Module):
    """Which experts a token goes to, and how much each of them counts.

    Source: Jiang et al., "Mixtral of experts" (2024), section 2.1, as in `transformers`: the probabilities of
    all experts, of which the K largest are kept; normalised to a sum of 1 where the model has it so.

    Attributes:
        weight: `[E, width]`, whole on every rank.
        balance: the loss of all routers; None where there is none.
    """

    balance: Balance | None = None

    def __init__(self, config: TransformerConfig, *, normalises: bool) -> None:
        super().__init__()
        assert config.num_moe_experts is not None
        self.per_token, self.normalises = config.moe_router_topk, normalises
        shape = config.num_moe_experts, config.hidden_size
        self.weight = torch.nn.Parameter(torch.zeros(shape, dtype=config.params_dtype))
        # Megatron reads it off a parameter.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # Megatron's mark

    def forward(
        self, tokens: torch.Tensor, fills_up: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each token's experts count, float32, and their numbers: `[T, width]` to `[T, K]` each.

        `fills_up`, bool `[T]`, is True for tokens that mean nothing.
        """
        # In float32: in fewer bits many probabilities are equal, and rounding would choose.
        probabilities = functional.linear(tokens.float(), self.weight.float()).softmax(-1)
        ordered, numbers = probabilities.sort(dim=-1, descending=True, stable=True)
        chosen = ordered[:, : self.per_token]
        if self.normalises:
            chosen = chosen / chosen.sum(-1, keepdim=True)
        numbers = numbers[:, : self.per_token]
        if self.balance is not None:
            chosen = self.balance.watched(chosen, probabilities, numbers, fills_up)
        return chosen, numbers


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
        """`[S, B, width]` to the same, a part of S with sequence parallelism; there is no bias."""
        fills_up = None if padding_mask is None else padding_mask.transpose(0, 1).flatten()
        mixed = partial(self.mixed, in_parts=self.config.sequence_parallel, fills_up=fills_up)
        if self.config.recompute_granularity == "selective" and torch.is_grad_enabled():
            return checkpoint(mixed, False, hidden_states), None
        return mixed(hidden_states), None

    def mixed(
        self, hidden: torch.Tensor, *, in_parts: bool = False, fills_up: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the experts make of each token, `[..., width]`, added up as the router says.

        Args:
            hidden: of this rank's tokens.
            in_parts: whether tensor-parallel ranks have a part of the tokens each, and not all of them.
            fills_up: bool `[T]`, True for tokens that mean nothing; of all tokens or this rank's.
        """
        tokens = hidden.flatten(0, -2)
        if fills_up is not None and len(fills_up) > len(tokens):
            fills_up = fills_up.chunk(self.attn_tp_group.size())[self.attn_tp_group.rank()]
        counts_TK, numbers_TK = self.router(tokens, fills_up)
        if self.attn_tp_group.size() > 1:  # each rank has a part of every expert
            enter = gather_from_sequence_parallel_region if in_parts else copy_to_tensor_model_parallel_region
            tokens, counts_TK = enter(tokens), enter(counts_TK)
            numbers_TK = enter(numbers_TK) if in_parts else numbers_TK
        outputs = self._by_experts(tokens, numbers_TK)
        mixed = (outputs * counts_TK.unsqueeze(-1)).sum(1).to(hidden.dtype)
        if self.attn_tp_group.size() > 1:
            leave = (
                reduce_scatter_to_sequence_parallel_region
                if in_parts
                else reduce_from_tensor_model_parallel_region
            )
            mixed = leave(mixed)
        return mixed.view_as(hidden)

    def _by_experts(self, tokens: torch.Tensor, numbers_TK: torch.Tensor) -> torch.Tensor:
        """What each token's experts make of it: `[T, K, width]`."""
        number_of = numbers_TK.flatten()
        order = number_of.argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        sizes_E = number_of.bincount(minlength=self.router.weight.shape[0])
        rows = _Ordered.apply(tokens, order, back, numbers_TK.shape[1])
        rows = self._elsewhere(rows, sizes_E) if self.ep_group.size() > 1 else self._here(rows, sizes_E)
        return _Ordered.apply(rows, back, order, 1).unflatten(0, numbers_TK.shape)

    def _here(self, rows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """What this rank's experts make of rows: so many for each, again and again."""
        experts = itertools.cycle(self.experts.local_experts)
        parts = rows.split(sizes.flatten().tolist())
        return torch.cat([expert(part)[0] for expert, part in zip(experts, parts, strict=False)])

    def _elsewhere(self, rows: torch.Tensor, sizes_E: torch.Tensor) -> torch.Tensor:
        """What experts make of rows that travel to the ranks that have them, and back.

        The rows of each rank go through an expert by themselves: their bits depend on no other rank.
        """
        ranks = self.ep_group.size()
        of_all = [torch.empty_like(sizes_E) for _ in range(ranks)]
        dist.all_gather(of_all, sizes_E, group=self.ep_group)
        first = self.local_expert_indices[0]
        coming = torch.stack(of_all)[:, first : first + self.num_local_experts]
        going = sizes_E.view(ranks, -1).sum(1).tolist()
        coming_in_all = coming.sum(1).tolist()
        there = all_to_all(self.ep_group, rows, coming_in_all, going)
        return all_to_all(self.ep_group, self._here(there, coming), going, coming_in_all)


def mixtures(model: torch.nn.Module) -> list[Mixture]:
    """Those of this rank's layers, in their order; some may have an MLP."""
    return [module for module in model.modules() if isinstance(module, Mixture)]


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
