"""Causal self-attention with rotary positions, over padded rows or over rows in a line.

Takes the place of Megatron's forward pass around its own layers, so that attention keeps to the rows of a
line (`line.py`). Rows of equal length that lie side by side go through torch's fused kernel together (flash
attention on a GPU), or all of them through flash-attn's, where it is installed (`installed.py`). Kernels of
our own know no windows and no caps: where a row is longer than a layer's window, torch computes that layer.
Left out on purpose: dropout, caches of a decoder (`generation` has its own network), and context parallelism.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.identity_op import IdentityOp

from rs_aligner.model import native
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.attending import Rule, attend_causally
from rs_aligner.model.installed import attend, varlen_of
from rs_aligner.model.line import Line, Rotation, Rows, rotation_of, rows_side_by_side
from rs_aligner.model.modules import WideNorm
from rs_aligner.model.native import Batch, Heads, Kernels, address, kernels_of
from rs_aligner.model.rotary import order_of_pairs


class LineAttention(SelfAttention):
    """Megatron's self-attention, its parameters and layers, with a forward pass of our own."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: None = None,
        *_: Any,
        rotary_pos_emb: torch.Tensor,
        packed_seq_params: Line | None = None,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[S, B, width]` (a part of S with sequence parallelism) to the same, and the projection's bias.

        Without a line rows are padded on the right, so the causal mask keeps padding out of every real token.
        """
        # Never computed again in the backward pass: no scores are kept.
        nothing = (type(None), IdentityOp)
        has_norms = not (isinstance(self.q_layernorm, nothing) and isinstance(self.k_layernorm, nothing))
        found = self.get_query_key_value_tensors(hidden_states, split_qkv=has_norms)
        heads = found if has_norms else found[:1]

        mixed = self.core_attention(heads, rotary_pos_emb, packed_seq_params)
        output: tuple[torch.Tensor, torch.Tensor | None] = self.linear_proj(mixed)
        return output


class WideNormAttention(LineAttention):
    """The same with a norm over all queries of a token together, and one over all keys.

    It makes them itself: since 0.18 Megatron refuses a spec's norms that its config does not name, and those
    that it names it takes for equal on all tensor-parallel ranks, and adds up their gradients. A rank's part
    of these is its own.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **how: Any) -> None:
        super().__init__(config, *args, **how)
        dim, eps = config.kv_channels, config.layernorm_epsilon
        self.q_layernorm = WideNorm(config, config.num_attention_heads, dim, eps)
        self.k_layernorm = WideNorm(config, config.num_query_groups, dim, eps)


class RotaryAttention(torch.nn.Module):
    """Causal attention of queries and keys that are rotated here."""

    def __init__(
        self, config: TransformerConfig, arch: Architecture | None = None, layer_number: int = 1, **_: Any
    ) -> None:
        super().__init__()
        self.dim = config.kv_channels
        layer = layer_number - 1  # Megatron counts from 1, over all stages
        self.rule = Rule(self.dim**-0.5) if arch is None else Rule.of(arch, layer)
        self.rope = 0 if arch is None else arch.rope_place(layer)
        order = None if arch is None else order_of_pairs(arch.ropes[self.rope], self.dim)
        self.order = None if order is None else torch.tensor(order)
        self.kernels = kernels_of(config)
        self.varlen = varlen_of(config)[0]

    def forward(
        self, heads: tuple[torch.Tensor, ...], table: torch.Tensor, line: Line | None
    ) -> torch.Tensor:
        """Attention of rows in a line, or of B rows of S tokens side by side.

        Args:
            heads: queries, keys and values, `[S, B, heads, dim]` each; or all in one, `[S, B, groups, X]`,
                with X a group's query heads, its key and its value, as Megatron's layer makes them.
            table: cosines and sines of positions, as `Rotary` has them: `[S, 1, 1, R * dim]`.
            line: the boundaries of rows (B is 1 then).

        Returns:
            `[S, B, heads * dim]`.
        """
        dtype, table = heads[0].dtype, table[..., self.rope * self.dim : (self.rope + 1) * self.dim]
        rotation = rotation_of(table, dtype) if line is None else line.rotation(table, dtype, self.rope)
        if self.order is not None:
            heads = self._in_pairs(heads, self.order.to(table.device))
        longest = len(heads[0]) if line is None else line.rows.longest
        if self.kernels is not None and native.fitting(*heads) and self._has_kernel(longest):
            rows = rows_side_by_side(*heads[0].shape[:2]) if line is None else line.rows
            if line is None and heads[0].shape[1] > 1:
                cos, sin = (x.repeat_interleave(heads[0].shape[1], 0) for x in rotation)
                rotation = cos, sin
            mixed: torch.Tensor = _Attention.apply(
                self.kernels, self.dim, self.rule.scale, rotation, rows, *(x.contiguous() for x in heads)
            )
            return mixed
        query, key, value = heads if len(heads) == 3 else self._split(heads[0])
        return self._by_torch(rotated(query, rotation), rotated(key, rotation), value, line)

    def _split(self, mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        queries = mixed.shape[-1] - 2 * self.dim
        query, key, value = mixed.split([queries, self.dim, self.dim], dim=-1)
        return query.reshape(*query.shape[:2], -1, self.dim), key, value

    def _has_kernel(self, longest: int) -> bool:
        """Whether kernels of our own can do it: they see all that comes before, and bend no scores."""
        return self.rule.cap is None and not self.rule.hides(longest)

    def _in_pairs(self, heads: tuple[torch.Tensor, ...], order: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries and keys with their numbers in another order: those of a pair half a head apart."""
        if len(heads) == 3:
            query, key, value = heads
            return query[..., order], key[..., order], value
        *turned, value = heads[0].unflatten(-1, (-1, self.dim)).unbind(-2)
        return (torch.cat([*(x[..., order] for x in turned), value], -1),)

    def _by_torch(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, line: Line | None
    ) -> torch.Tensor:
        if line is None:
            return self._causal(query, key, value)
        if self.varlen is not None:
            return attend(self.varlen, query, key, value, line, self.rule)
        parts, start = [], 0
        for length, alike in groupby(line.lengths):
            count = len(list(alike))
            end = start + count * length
            q, k, v = (
                x[start:end, 0].unflatten(0, (count, length)).transpose(0, 1) for x in (query, key, value)
            )
            parts.append(self._causal(q, k, v).transpose(0, 1).flatten(0, 1))
            start = end
        return torch.cat(parts).unsqueeze(1)

    def _causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = attend_causally(q, k, v, self.rule)
        return out.permute(2, 0, 1, 3).flatten(2)


class _Attention(torch.autograd.Function):
    """Rotation and attention by the kernels, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        dim: int,
        scale: float,
        rotation: Rotation,
        rows: Rows,
        *heads: torch.Tensor,
    ) -> torch.Tensor:
        cos, sin = (x.contiguous() for x in rotation)
        inputs, groups, per_group = _where(dim, heads)
        batch = Batch(
            *(len(rows.lengths), groups, per_group),
            *(address(rows.starts), address(rows.lengths)),
            *(rows.step, rows.longest),
            *(address(cos), address(sin)),
            scale,
        )
        out = heads[0].new_empty(*heads[0].shape[:2], groups * per_group * dim)
        room = _room(kernels, rows, out)
        log_sums = heads[0].new_empty(out.shape[0] * out.shape[1], groups * per_group)
        kernels.attention(
            *(ctypes.byref(batch), ctypes.byref(inputs), address(out), address(log_sums)),
            *(address(room), len(room)),
        )
        ctx.save_for_backward(out, log_sums, *heads)
        ctx.kernels, ctx.dim, ctx.batch, ctx.rows, ctx.angles = kernels, dim, batch, rows, (cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        out, log_sums, *heads = ctx.saved_tensors
        found = [torch.zeros_like(x) for x in heads]
        inputs, outputs = _where(ctx.dim, heads)[0], _where(ctx.dim, found)[0]
        grad, room = grads[0].contiguous(), _room(ctx.kernels, ctx.rows, out)
        ctx.kernels.attention_backward(
            *(ctypes.byref(ctx.batch), ctypes.byref(inputs), address(out), address(log_sums)),
            *(address(grad), ctypes.byref(outputs), address(room), len(room)),
        )
        return (None, None, None, None, None, *found)


def _where(dim: int, heads: Sequence[torch.Tensor]) -> tuple[Heads, int, int]:
    """Where queries, keys and values lie; how many groups there are, and query heads in each."""
    if len(heads) == 1:
        groups, size = heads[0].shape[2:]
        per_group, first = size // dim - 2, heads[0].data_ptr()
        places = [first, first + 4 * per_group * dim, first + 4 * (per_group + 1) * dim]
        return Heads(*places, *(groups * size, size) * 3), groups, per_group
    groups = heads[1].shape[2]
    per_group = heads[0].shape[2] // groups
    strides = (groups * per_group * dim, per_group * dim, groups * dim, dim, groups * dim, dim)
    return Heads(*map(address, heads), *strides), groups, per_group


def _room(kernels: Kernels, rows: Rows, like: torch.Tensor) -> torch.Tensor:
    """Working memory for as many threads as torch has: a line for each."""
    return like.new_empty(torch.get_num_threads(), kernels.attention_room(rows.longest))


def rotated(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Each head's halves turned by the angles of its position: `[S, B, heads, dim]`.

    Source: Su et al., "RoFormer" (2021), equation 34, with a pair's numbers half a head apart, as in Llama.
    """
    cos, sin = (x[:, None, None, :] for x in rotation)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
