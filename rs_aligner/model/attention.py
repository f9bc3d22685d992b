"""Causal self-attention with rotary positions, over padded rows or over rows in a line.

Takes the place of Megatron's forward pass around its own layers, so that attention keeps to the rows of a
line (`line.py`). Rows of equal length that lie side by side go through torch's fused kernel together (flash
attention on a GPU), or all of them through flash-attn's, where it is installed (`installed.py`). Left out on
purpose: dropout, caches of a decoder (`generation` has its own network), and context parallelism.
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
from torch.nn import functional

from rs_aligner.model import native
from rs_aligner.model.installed import attend, varlen_of
from rs_aligner.model.line import Line, Rotation, Rows, rotation_of, rows_side_by_side
from rs_aligner.model.native import Batch, Heads, Kernels, address, kernels_of


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


class RotaryAttention(torch.nn.Module):
    """Causal attention of queries and keys that are rotated here."""

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.dim = config.kv_channels
        self.softmax_scale = self.dim**-0.5 if softmax_scale is None else softmax_scale
        self.kernels = kernels_of(config)
        self.varlen = varlen_of(config)[0]

    def forward(
        self, heads: tuple[torch.Tensor, ...], table: torch.Tensor, line: Line | None
    ) -> torch.Tensor:
        """Attention of rows in a line, or of B rows of S tokens side by side.

        Args:
            heads: queries, keys and values, `[S, B, heads, dim]` each; or all in one, `[S, B, groups, X]`,
                with X a group's query heads, its key and its value, as Megatron's layer makes them.
            table: cosines and sines of positions, as `Rotary` has them: `[S, 1, 1, dim]`.
            line: the boundaries of rows (B is 1 then).

        Returns:
            `[S, B, heads * dim]`.
        """
        dtype = heads[0].dtype
        rotation = rotation_of(table, dtype) if line is None else line.rotation(table, dtype)
        if self.kernels is not None and native.fitting(*heads):
            rows = rows_side_by_side(*heads[0].shape[:2]) if line is None else line.rows
            if line is None and heads[0].shape[1] > 1:
                cos, sin = (x.repeat_interleave(heads[0].shape[1], 0) for x in rotation)
                rotation = cos, sin
            mixed: torch.Tensor = _Attention.apply(
                self.kernels, self.dim, self.softmax_scale, rotation, rows, *(x.contiguous() for x in heads)
            )
            return mixed
        query, key, value = heads if len(heads) == 3 else self._split(heads[0])
        return self._by_torch(rotated(query, rotation), rotated(key, rotation), value, line)

    def _split(self, mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        queries = mixed.shape[-1] - 2 * self.dim
        query, key, value = mixed.split([queries, self.dim, self.dim], dim=-1)
        return query.reshape(*query.shape[:2], -1, self.dim), key, value

    def _by_torch(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, line: Line | None
    ) -> torch.Tensor:
        if line is None:
            return self._causal(query, key, value)
        if self.varlen is not None:
            return attend(self.varlen, query, key, value, line, self.softmax_scale)
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
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
        )
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
