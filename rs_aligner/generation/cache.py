"""Keys and values of the rollouts in the making, for torch: each prompt's once, each rollout's own behind it.

A cohort is a set of rollouts that were admitted together, so their own parts are equally long and need no
mask. The rollouts of a prompt attend to one copy of it, all in one product, and the two partial attentions
are merged by their log-sum-exps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

ROOM = 32  # slots that each rollout of a cohort has at first; they double when they are taken


@dataclass(slots=True)
class PromptCache:
    """Keys and values of prompts, by layer: `[P, kv_heads, T, dim]` each, padded on the right.

    Attributes:
        lengths: tokens of each prompt.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: list[int]

    def select(self, prompts: Sequence[int]) -> PromptCache:
        """Some of the prompts, in that order."""
        index = torch.tensor(prompts, device=self.keys[0].device)
        lengths = [self.lengths[p] for p in prompts]
        width = max(lengths)
        keys, values = (
            [tensor[:, :, :width].index_select(0, index) for tensor in tensors]
            for tensors in (self.keys, self.values)
        )
        return PromptCache(keys, values, lengths)

    @staticmethod
    def join(parts: Sequence[PromptCache]) -> PromptCache:
        """Several caches as one, padded to the longest prompt."""
        lengths = [length for part in parts for length in part.lengths]
        width = max(lengths)

        def together(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            whole = tensors[0].new_zeros(len(lengths), tensors[0].shape[1], width, tensors[0].shape[3])
            start = 0
            for tensor in tensors:
                whole[start : start + len(tensor), :, : tensor.shape[2]] = tensor[:, :, :width]
                start += len(tensor)
            return whole

        layers = range(len(parts[0].keys))
        keys = [together([part.keys[layer] for part in parts]) for layer in layers]
        values = [together([part.values[layer] for part in parts]) for layer in layers]
        return PromptCache(keys, values, lengths)


class CohortCache:
    """The cache of rollouts that were admitted together; their own part is `[R, kv_heads, S, dim]`, by layer.

    Args:
        prompts: the cache of the cohort's prompts.
        counts: how many rollouts each prompt has; they stand in prompt order.
        limit: most tokens that a rollout may have.

    Attributes:
        owners: the number of each rollout's prompt.
        length: slots taken, the same for all.
    """

    def __init__(self, prompts: PromptCache, counts: Sequence[int], limit: int) -> None:
        like = prompts.keys[0]
        self.prompts, self.device = prompts, like.device
        self.owners = [p for p, count in enumerate(counts) for _ in range(count)]
        self.length, self.limit, self.room = 0, limit, min(limit, ROOM)
        shape = (len(self.owners), like.shape[1], self.room, like.shape[3])
        self.keys = [like.new_empty(shape) for _ in prompts.keys]
        self.values = [like.new_empty(shape) for _ in prompts.keys]
        self._arrange()

    @property
    def nbytes(self) -> int:
        """Bytes held, the prompts' included."""
        held = (self.keys, self.values, self.prompts.keys, self.prompts.values)
        return sum(tensor.nbytes for tensors in held for tensor in tensors)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Add a token's key and value to each rollout and attend to all that it has.

        Args:
            layer: of this rank.
            query: `[R, kv_heads, group, dim]`, the query heads by the key they share.
            key: `[R, kv_heads, dim]`.
            value: `[R, kv_heads, dim]`.

        Returns:
            `[R, kv_heads, group, dim]`.
        """
        keys, values, end = self.keys[layer], self.values[layer], self.length + 1
        keys[:, :, self.length] = key
        values[:, :, self.length] = value
        own, own_lse = attention(query, keys[:, :, :end], values[:, :, :end])
        prompt, prompt_lse = self._attend_to_prompts(layer, query)
        share = torch.sigmoid(prompt_lse - own_lse).unsqueeze(-1).to(own.dtype)
        return torch.lerp(own, prompt, share)

    def advance(self) -> None:
        """Make the slot just filled a lasting one, and room for the next."""
        self.length += 1
        if self.length == self.room < self.limit:
            self._move(None)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rollouts."""
        self.owners = [self.owners[row] for row in rows]
        self._move(torch.tensor(rows, device=self.device))

    def _move(self, kept: torch.Tensor | None) -> None:
        """Copy the slots taken to tensors of the new size, a layer at a time."""
        if self.length == self.room:
            self.room = min(self.limit, 2 * self.room)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                taken = old[:, :, : self.length]
                if kept is not None:
                    taken = taken.index_select(0, kept)
                tensors[layer] = old.new_empty(*taken.shape[:2], self.room, taken.shape[3])
                tensors[layer][:, :, : self.length] = taken
        self._arrange()

    def _arrange(self) -> None:
        """Plan how rollouts and their prompts' slots map to each other, and which slots are padding."""
        alive = sorted(set(self.owners))
        if len(alive) < len(self.prompts.lengths):
            self.prompts = self.prompts.select(alive)
            self.owners = [alive.index(owner) for owner in self.owners]
        counts = [self.owners.count(p) for p in range(len(alive))]
        self._most = max(counts)
        self._gather: torch.Tensor | None = None
        if min(counts) < self._most:  # prompts with fewer rollouts repeat their last one, to no effect
            starts = [sum(counts[:p]) for p in range(len(counts))]
            slots = [starts[p] + min(i, counts[p] - 1) for p in range(len(counts)) for i in range(self._most)]
            back = [owner * self._most + row - starts[owner] for row, owner in enumerate(self.owners)]
            self._gather = torch.tensor(slots, device=self.device)
            self._scatter = torch.tensor(back, device=self.device)
        lengths, width = self.prompts.lengths, self.prompts.keys[0].shape[2]
        self._mask: torch.Tensor | None = None
        if min(lengths) < width:
            ends = torch.tensor(lengths, device=self.device)[:, None, None, None]
            self._mask = _additive(torch.arange(width, device=self.device) < ends, self.keys[0].dtype)

    def _attend_to_prompts(self, layer: int, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to the prompts alone, with its log-sum-exp.

        The queries of a prompt's rollouts stand side by side, as if they were positions.
        """
        if self._gather is not None:
            query = query.index_select(0, self._gather)
        group = query.shape[2]
        side_by_side = query.unflatten(0, (-1, self._most)).transpose(1, 2).flatten(2, 3)
        found = attention(side_by_side, self.prompts.keys[layer], self.prompts.values[layer], self._mask)
        out, lse = (x.unflatten(2, (self._most, group)).transpose(1, 2).flatten(0, 1) for x in found)
        if self._gather is not None:
            out, lse = out.index_select(0, self._scatter), lse.index_select(0, self._scatter)
        return out, lse


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention with the log-sum-exp of its scores.

    Args:
        query: `[B, heads, Q, dim]`.
        key, value: `[B, heads, S, dim]`.
        mask: added to the scores, broadcast to `[B, heads, Q, S]`.

    Returns:
        `[B, heads, Q, dim]`, and float `[B, heads, Q]`.
    """
    if query.device.type == "cpu":
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask)
        return found[0], found[1]
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)).float()
    if mask is not None:
        scores += mask
    lse = scores.logsumexp(-1)
    return torch.matmul(scores.softmax(-1).to(value.dtype), value), lse


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)
