"""The policy's forward pass with a cache of keys and values, on the training weights themselves.

Megatron's own inference path is slower than what users would compare with, so this one reads the
same parameters (no copy, no export) and runs the same operations in the same order: what it decodes
is the policy of this very step. Tensor-parallel ranks each hold their heads' cache; pipeline stages
hand the hidden state on, and the last one's logits decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch.nn import functional

from rs_aligner.generation.cache import PromptCache
from rs_aligner.generation.lockstep import begin_pass
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.attending import Rule, attend_causally
from rs_aligner.model.ends import finished_logits, scaled_embedding
from rs_aligner.model.experts import Mixture
from rs_aligner.model.layer import Join
from rs_aligner.model.rotary import order_of_pairs
from rs_aligner.model.runtime import Runtime

Attend = Callable[[int, torch.Tensor, Rule], torch.Tensor]
"""`attend(layer, qkv, rule)`: as `CohortCache.attend`, with any leading shape."""


class Network:
    """Logits of the policy, with a cache.

    Args:
        model: this rank's part of the policy (Megatron's `GPTModel`).
        arch: its architecture.
        runtime: of this rank.
        allowed: bool `[V]`, the ids that may be sampled; None for all.
    """

    allowed: torch.Tensor | None = None

    def __init__(
        self, model: GPTModel, arch: Architecture, runtime: Runtime, allowed: torch.Tensor | None = None
    ) -> None:
        self.model, self.arch, self.runtime, self.allowed = model, arch, runtime, allowed
        self.num_layers = len(model.decoder.layers)
        self.num_kv_heads = arch.num_kv_heads // runtime.tp_size
        self.group = arch.num_heads // arch.num_kv_heads
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.tp_group = parallel_state.get_tensor_model_parallel_group()
        self.pp_group = parallel_state.get_pipeline_model_parallel_group()
        self.pp_ranks = dist.get_process_group_ranks(self.pp_group)
        first = runtime.pp_rank * self.num_layers
        self._rules = [Rule.of(arch, first + number) for number in range(self.num_layers)]
        self._places = [arch.rope_place(first + number) for number in range(self.num_layers)]
        orders = [order_of_pairs(rope, arch.head_dim) for rope in arch.ropes]
        self._orders = [None if one is None else torch.tensor(one, device=self.device) for one in orders]
        self._turns = [
            tuple(table[:, None, None].to(self.device, self.dtype) for table in tables)
            for tables in rotary_tables(model, arch)
        ]

    @property
    def bytes_per_token(self) -> int:
        """What a token of a row takes in this rank's cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.arch.head_dim * self.dtype.itemsize

    @torch.no_grad()
    def prefill(self, tokens: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, PromptCache]:
        """Run whole prompts.

        Args:
            tokens: int64 `[P, T]`, padded on the right.
            lengths: of the P prompts.

        Returns:
            float32 logits `[P, V]` behind each prompt (on the last pipeline stage), and the cache.
        """
        self.runtime.use_threads(self.model, tokens.numel())
        positions = torch.arange(tokens.shape[1], device=self.device).expand_as(tokens)
        cache = PromptCache([], lengths)

        def attend(layer: int, qkv: torch.Tensor, rule: Rule) -> torch.Tensor:
            kept = qkv[..., self.group :, :].permute(3, 2, 0, 1, 4).contiguous()
            cache.layers.append(kept)
            key, value = kept.transpose(1, 2)
            query = qkv[..., : self.group, :].flatten(2, 3).transpose(1, 2)
            return attend_causally(query, key, value, rule).transpose(1, 2)

        hidden = self._stages(tokens, positions, attend)
        ends = torch.tensor(lengths, device=self.device) - 1
        return self._logits(hidden[torch.arange(len(tokens), device=self.device), ends]), cache

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Run one more token of each row.

        Args:
            tokens: int64 `[R]`, the newest token of each row.
            positions: int64 `[R]`, their places in the sequences.
            attend: attention over the rows' caches.

        Returns:
            float32 logits `[R, V]` (on the last pipeline stage).
        """
        self.runtime.use_threads(self.model, len(tokens))
        return self._logits(self._stages(tokens, positions, attend))

    def _stages(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """The hidden state `[..., H]` behind this rank's layers."""
        begin_pass(self.runtime)
        if self.runtime.is_first_stage:
            hidden = self._embed(tokens, positions)
        else:
            hidden = torch.empty(*tokens.shape, self.arch.hidden_size, dtype=self.dtype, device=self.device)
            dist.recv(hidden, self.pp_ranks[self.runtime.pp_rank - 1], group=self.pp_group)
        turns = [(cos[positions], sin[positions]) for cos, sin in self._turns]
        for number, layer in enumerate(self.model.decoder.layers):
            hidden = self._layer(number, layer, hidden, *turns[self._places[number]], attend)
        if not self.runtime.is_last_stage:
            dist.send(hidden.contiguous(), self.pp_ranks[self.runtime.pp_rank + 1], group=self.pp_group)
        return hidden

    def _layer(
        self,
        number: int,
        layer: Any,  # Megatron's TransformerLayer
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attend: Attend,
    ) -> torch.Tensor:
        """The hidden state behind a layer, in the place of the one before it."""
        attention, mlp, norm = layer.self_attention, layer.mlp, layer.pre_mlp_layernorm
        qkv = functional.linear(
            layer.input_layernorm(hidden), attention.linear_qkv.weight, attention.linear_qkv.bias
        )
        qkv = qkv.unflatten(-1, (self.num_kv_heads, self.group + 2, self.arch.head_dim))
        if self.arch.qk_norm or self.arch.wide_qk_norm:
            query, key, value = qkv.split([self.group, 1, 1], dim=-2)
            qkv = torch.cat([attention.q_layernorm(query), attention.k_layernorm(key), value], dim=-2)
        if (order := self._orders[self._places[number]]) is not None:
            qkv = torch.cat([qkv[..., :-1, :][..., order], qkv[..., -1:, :]], dim=-2)
        if not self.arch.learnt_positions:
            rotate(qkv, self.group + 1, cos, sin)
        mixed = attend(number, qkv, self._rules[number]).reshape(*hidden.shape[:-1], -1)
        self._add(hidden, mixed, attention.linear_proj, layer.self_attn_bda)
        if isinstance(mlp, Mixture):
            return hidden.add_(mlp.mixed(norm(hidden)))
        inner = functional.linear(norm(hidden), mlp.linear_fc1.weight, mlp.linear_fc1.bias)
        return self._add(hidden, mlp.activation_func(inner), mlp.linear_fc2, layer.mlp_bda)

    def _add(self, hidden: torch.Tensor, x: torch.Tensor, linear: Any, join: Any) -> torch.Tensor:
        """Add what a layer makes of `x`, whose inputs the tensor-parallel ranks share, in place."""
        weight = linear.weight
        if isinstance(join, Join):
            found = self._sum(functional.linear(x, weight))
            return hidden.add_(join.joining(found if linear.bias is None else found.add_(linear.bias)))
        if linear.bias is not None:
            hidden.add_(linear.bias)
        if self.runtime.tp_size > 1:
            return hidden.add_(self._sum(functional.linear(x, weight)))
        hidden.view(-1, hidden.shape[-1]).addmm_(x.flatten(0, -2), weight.t())
        return hidden

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = self._embed_tokens(tokens)
        if self.arch.learnt_positions:
            hidden += functional.embedding(positions, self.model.embedding.position_embeddings.weight)
        return hidden

    def _embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        weight = self.model.embedding.word_embeddings.weight
        if self.runtime.tp_size == 1:
            return scaled_embedding(self.arch, functional.embedding(tokens, weight))
        local = tokens - self.runtime.tp_rank * len(weight)
        elsewhere = (local < 0) | (local >= len(weight))
        found = functional.embedding(local.masked_fill(elsewhere, 0), weight)
        return scaled_embedding(self.arch, self._sum(found.masked_fill(elsewhere.unsqueeze(-1), 0)))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.runtime.is_last_stage:
            return torch.empty(len(hidden), 0, device=self.device)
        hidden = self.model.decoder.final_layernorm(hidden)
        shares = self.arch.tied_embeddings and self.runtime.is_first_stage
        weight = self.model.embedding.word_embeddings.weight if shares else self.model.output_layer.weight
        logits = finished_logits(self.arch, functional.linear(hidden, weight))
        if self.runtime.tp_size > 1:
            parts = [torch.empty_like(logits) for _ in range(self.runtime.tp_size)]
            dist.all_gather(parts, logits, group=self.tp_group)
            logits = torch.cat(parts, dim=-1)
        return logits.float()

    def _sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Add up what the tensor-parallel ranks each computed of a sum."""
        if self.runtime.tp_size > 1:
            dist.all_reduce(partial, group=self.tp_group)
        return partial


def rotary_tables(model: GPTModel, arch: Architecture) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cosines and sines of training's, float32 `[positions, dim]`, for each of `arch.ropes`.

    The sign is as `rotate` wants it.
    """
    cos, sin = (x.chunk(len(arch.ropes), -1) for x in model.rotary_pos_emb.get_cos_sin(arch.max_positions))
    return [(torch.cat([c, c], dim=-1), torch.cat([-s, s], dim=-1)) for c, s in zip(cos, sin, strict=True)]


def rotate(qkv: torch.Tensor, heads: int, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn each pair (x_i, x_(i + dim/2)) of the first heads by its angle, in place.

    The sign of a pair's first half is in `sin`. All heads are rolled, since a copy of some takes two passes.
    """
    rolled = qkv.roll(qkv.shape[-1] // 2, -1)[..., :heads, :]
    qkv[..., :heads, :].mul_(cos).addcmul_(rolled, sin)
