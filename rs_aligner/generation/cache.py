"""Keys and values of the rollouts in the making, for torch: each prompt's once, each rollout's own behind it.

A cohort is a set of rollouts that were admitted together, so their own parts are equally long and need no
mask. Left out on purpose: attention itself (`sharing.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rs_aligner.generation.sharing import Sharing, attend_at_once, attend_in_parts
from rs_aligner.model.attending import Rule

ROOM = 32  # slots that each rollout of a cohort has at first; they double when they are taken


@dataclass(slots=True)
class PromptCache:
    """Keys and values of prompts, by layer: `[2, kv_heads, P, T, dim]` each, padded on the right.

    Heads come before rows, so that a prompt's rollouts and their query heads lie side by side in memory.

    Attributes:
        lengths: tokens of each prompt.
    """

    layers: list[torch.Tensor]
    lengths: list[int]

    def select(self, prompts: Sequence[int]) -> PromptCache:
        """Some of the prompts, in that order."""
        index = torch.tensor(prompts, device=self.layers[0].device)
        lengths = [self.lengths[p] for p in prompts]
        width = max(lengths)
        return PromptCache([one[:, :, :, :width].index_select(2, index) for one in self.layers], lengths)

    @staticmethod
    def join(parts: Sequence[PromptCache]) -> PromptCache:
        """Several caches as one, padded to the longest prompt."""
        lengths = [length for part in parts for length in part.lengths]
        width = max(lengths)

        def together(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            like = tensors[0]
            whole = like.new_zeros(2, like.shape[1], len(lengths), width, like.shape[4])
            start = 0
            for tensor in tensors:
                end = start + tensor.shape[2]
                whole[:, :, start:end, : tensor.shape[3]] = tensor[:, :, :, :width]
                start = end
            return whole

        layers = zip(*(part.layers for part in parts), strict=True)
        return PromptCache([together(tensors) for tensors in layers], lengths)


class CohortCache:
    """The cache of rollouts that were admitted together; their own is `[kv_heads, R, 2, S, dim]`, by layer.

    Args:
        prompts: the cache of the cohort's prompts.
        counts: how many rollouts each prompt has; they stand in prompt order.
        limit: most tokens that a rollout may have.

    Attributes:
        owners: the number of each rollout's prompt.
        length: slots taken, the same for all.
    """

    def __init__(self, prompts: PromptCache, counts: Sequence[int], limit: int) -> None:
        like = prompts.layers[0]
        self.prompts, self.device = prompts, like.device
        self.owners = [p for p, count in enumerate(counts) for _ in range(count)]
        self.length, self.limit, self.room = 0, limit, min(limit, ROOM)
        self._sights: dict[int, Sharing] = {}  # of the token that comes, by window
        shape = (like.shape[1], len(self.owners), 2, self.room, like.shape[4])
        self.own = [like.new_empty(shape) for _ in prompts.layers]
        self._arrange()

    @property
    def nbytes(self) -> int:
        """Bytes held, the prompts' included."""
        return sum(tensor.nbytes for tensor in (*self.own, *self.prompts.layers))

    def attend(self, layer: int, qkv: torch.Tensor, rule: Rule) -> torch.Tensor:
        """Add a token's key and value to each rollout and attend to all that it has in sight.

        Args:
            layer: of this rank.
            rule: of the layer.
            qkv: `[R, kv_heads, group + 2, dim]`: the query heads by the key they share, the key, the value.

        Returns:
            `[R, kv_heads, group, dim]`.
        """
        by_head = qkv.transpose(0, 1)
        self.own[layer][:, :, :, self.length] = by_head[:, :, -2:]
        first = 0 if rule.window is None else max(0, self.length + 1 - rule.window)
        keys, values = self.own[layer][:, :, :, first : self.length + 1].unbind(2)
        hides = rule.hides(max(self.prompts.lengths) + self.length + 1)
        # Of a part that is all out of sight there is no log-sum-exp.
        is_bent = rule.cap is not None
        attend = attend_at_once if hides or is_bent or self.device.type != "cpu" else attend_in_parts
        query, prompts = by_head[:, :, :-2].contiguous(), self.prompts.layers[layer]
        sharing = self._in_sight(rule) if hides else self.sharing
        return attend(query, prompts, keys, values, sharing, rule).transpose(0, 1)

    def _in_sight(self, rule: Rule) -> Sharing:
        """The plan with what is before a window out of sight; made once for all layers that have it."""
        assert rule.window is not None
        if rule.window not in self._sights:
            firsts = [length + self.length + 1 - rule.window for length in self.prompts.lengths]
            self._sights[rule.window] = self.sharing.from_places(firsts, self.prompts.layers[0])
        return self._sights[rule.window]

    def advance(self) -> None:
        """Make the slot just filled a lasting one, and room for the next."""
        self.length += 1
        self._sights.clear()
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
        for layer, old in enumerate(self.own):
            taken = old[:, :, :, : self.length]
            if kept is not None:
                taken = taken.index_select(1, kept)
            self.own[layer] = old.new_empty(*taken.shape[:3], self.room, taken.shape[4])
            self.own[layer][:, :, :, : self.length] = taken
        self._arrange()

    def _arrange(self) -> None:
        """Leave prompts out that have no rollout any more, and plan how rollouts share those that have."""
        alive = sorted(set(self.owners))
        if len(alive) < len(self.prompts.lengths):
            self.prompts = self.prompts.select(alive)
            self.owners = [alive.index(owner) for owner in self.owners]
        self.sharing = Sharing.of(self.owners, self.prompts.lengths, self.own[0])
        self._sights.clear()
