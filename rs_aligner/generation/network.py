"""The policy's forward pass with a cache of keys and values, on the training weights themselves.

Megatron's own inference path is slower than what users would compare with, so this one reads the
same parameters (no copy, no export) and runs the same operations in the same order: what it decodes
is the policy of this very step. Tensor-parallel ranks each hold their heads' cache; pipeline stages
hand the hidden state on, and the last one's logits decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch.nn import functional

from rs_aligner.policy.architecture import Architecture
from rs_aligner.policy.runtime import Runtime


@dataclass(slots=True)
class Cache:
    """Keys and values of this rank's layers and heads: `[layers, B, kv_heads, S, dim]` each.

    Row b holds its tokens at places 0 to its length; what stands beyond is never attended to.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def select(self, rows: torch.Tensor) -> Cache:
        """The given rows, in that order (a row may come more than once)."""
        return Cache(self.keys.index_select(1, rows), self.values.index_select(1, rows))


class Network:
    """Logits of the policy, with a cache.

    Args:
        model: this rank's part of the policy (Megatron's `GPTModel`).
        arch: its architecture.
        runtime: this rank's place.
    """

    def __init__(self, model: GPTModel, arch: Architecture, runtime: Runtime) -> None:
        self.model, self.arch, self.runtime = model, arch, runtime
        self.num_layers = len(model.decoder.layers)
        self.num_heads = arch.num_heads // runtime.tp_size
        self.num_kv_heads = arch.num_kv_heads // runtime.tp_size
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.tp_group = parallel_state.get_tensor_model_parallel_group()
        self.pp_group = parallel_state.get_pipeline_model_parallel_group()
        self.pp_ranks = dist.get_process_group_ranks(self.pp_group)

    def new_cache(self, rows: int, length: int) -> Cache:
        shape = (self.num_layers, rows, self.num_kv_heads, length, self.arch.head_dim)
        return Cache(*(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2)))

    @torch.no_grad()
    def prefill(self, tokens: torch.Tensor, lengths: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Run whole prompts and fill the cache.

        Args:
            tokens: int64 `[B, T]`, padded on the right.
            lengths: int64 `[B]`.
            cache: of B rows; places 0 to T - 1 are written.

        Returns:
            float32 logits `[B, V]` behind each row's last token (on the last pipeline stage).
        """
        width = tokens.shape[1]
        positions = torch.arange(width, device=self.device).expand(len(tokens), width)

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            key, value = key.transpose(1, 2), value.transpose(1, 2)
            cache.keys[layer, :, :, :width] = key
            cache.values[layer, :, :, :width] = value
            grouped = self.num_heads != self.num_kv_heads
            out = functional.scaled_dot_product_attention(
                query.transpose(1, 2), key, value, is_causal=True, enable_gqa=grouped
            )
            return out.transpose(1, 2)

        hidden = self._stages(tokens, positions, attend)
        last = hidden[torch.arange(len(tokens), device=self.device), lengths - 1]
        return self._logits(last)

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, lengths: torch.Tensor, cache: Cache, longest: int) -> torch.Tensor:
        """Run one more token for each row.

        Args:
            tokens: int64 `[B]`, the newest token of each row.
            lengths: int64 `[B]`, how many tokens of the row are in the cache already.
            cache: of B rows; the token's keys and values are written at `lengths`.
            longest: the largest of `lengths`, known without asking the device.

        Returns:
            float32 logits `[B, V]` (on the last pipeline stage).
        """
        rows = torch.arange(len(tokens), device=self.device)
        places = torch.arange(longest + 1, device=self.device)
        allowed = (places <= lengths.unsqueeze(1))[:, None, None, :]

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            cache.keys[layer, rows, :, lengths] = key[:, 0]
            cache.values[layer, rows, :, lengths] = value[:, 0]
            # The query heads of a group take the place of query positions: nothing is repeated.
            grouped = query[:, 0].unflatten(1, (self.num_kv_heads, -1))
            out = functional.scaled_dot_product_attention(
                grouped,
                cache.keys[layer, :, :, : longest + 1],
                cache.values[layer, :, :, : longest + 1],
                attn_mask=allowed,
            )
            return out.flatten(1, 2).unsqueeze(1)

        hidden = self._stages(tokens.unsqueeze(1), lengths.unsqueeze(1), attend)
        return self._logits(hidden[:, 0])

    # How a hidden state passes through the layers and stages.

    def _stages(self, tokens, positions, attend) -> torch.Tensor:  # type: ignore[no-untyped-def]
        """The hidden state `[B, T, H]` behind this rank's layers."""
        if self.runtime.is_first_stage:
            hidden = self._embed(tokens)
        else:
            hidden = torch.empty(*tokens.shape, self.arch.hidden_size, dtype=self.dtype, device=self.device)
            dist.recv(hidden, self.pp_ranks[self.runtime.pp_rank - 1], group=self.pp_group)
        cos, sin = self._rotation(positions)
        for number, layer in enumerate(self.model.decoder.layers):
            hidden = self._layer(number, layer, hidden, cos, sin, attend)
        if not self.runtime.is_last_stage:
            dist.send(hidden.contiguous(), self.pp_ranks[self.runtime.pp_rank + 1], group=self.pp_group)
        return hidden

    def _layer(self, number, layer, hidden, cos, sin, attend) -> torch.Tensor:  # type: ignore[no-untyped-def]
        attention, mlp = layer.self_attention, layer.mlp
        batch, width, _ = hidden.shape
        qkv = functional.linear(
            layer.input_layernorm(hidden), attention.linear_qkv.weight, attention.linear_qkv.bias
        )
        per_group = self.num_heads // self.num_kv_heads
        qkv = qkv.view(batch, width, self.num_kv_heads, per_group + 2, self.arch.head_dim)
        query, key, value = qkv.split([per_group, 1, 1], dim=3)
        query, key, value = query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3)
        if self.arch.qk_norm:
            query, key = attention.q_layernorm(query), attention.k_layernorm(key)
        mixed = attend(number, _rotate(query, cos, sin), _rotate(key, cos, sin), value)
        hidden = hidden + self._sum(functional.linear(mixed.flatten(2), attention.linear_proj.weight))
        gate, up = functional.linear(layer.pre_mlp_layernorm(hidden), mlp.linear_fc1.weight).chunk(2, dim=-1)
        return hidden + self._sum(functional.linear(functional.silu(gate) * up, mlp.linear_fc2.weight))

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine `[B, T, 1, dim]` of the rotary angles (Su et al., 2021)."""
        inv_freq = self.model.rotary_pos_emb.inv_freq.to(self.device)
        angles = positions.unsqueeze(-1) * inv_freq
        angles = torch.cat([angles, angles], dim=-1).unsqueeze(2)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        weight = self.model.embedding.word_embeddings.weight
        if self.runtime.tp_size == 1:
            return functional.embedding(tokens, weight)
        local = tokens - self.runtime.tp_rank * len(weight)
        elsewhere = (local < 0) | (local >= len(weight))
        found = functional.embedding(local.masked_fill(elsewhere, 0), weight)
        return self._sum(found.masked_fill(elsewhere.unsqueeze(-1), 0))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.runtime.is_last_stage:
            return torch.empty(len(hidden), 0, device=self.device)
        hidden = self.model.decoder.final_layernorm(hidden)
        shares = self.arch.tied_embeddings and self.runtime.is_first_stage
        weight = self.model.embedding.word_embeddings.weight if shares else self.model.output_layer.weight
        logits = functional.linear(hidden, weight)
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

    def from_last_stage(self, tensor: torch.Tensor) -> torch.Tensor:
        """The last stage's tensor, on every stage (same shape and type everywhere)."""
        if self.runtime.pp_size > 1:
            dist.broadcast(tensor, self.pp_ranks[-1], group=self.pp_group)
        return tensor


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
