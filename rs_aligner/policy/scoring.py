"""Rewards of token sequences by a reward model, in batches of fixed shapes.

A matrix product rounds differently in another shape, so a sequence's reward could change, in the last bits,
with what else is scored beside it. Here every sequence is padded to a multiple of `WIDTH`, scored with others
of that width only, and a batch that is not full is filled up. So the shape that a sequence is scored in
depends on its own length and on `batch_size`, and never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel

from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.forward import Read, forward_only

WIDTH = 64


def batches_of(sequences: Sequence[Sequence[int]], batch_size: int) -> list[tuple[int, list[int]]]:
    """Which sequences are scored together: a width, and at most `batch_size` places in `sequences`."""
    by_width: dict[int, list[int]] = {}
    for place, sequence in enumerate(sequences):
        by_width.setdefault(-(-len(sequence) // WIDTH) * WIDTH, []).append(place)
    return [
        (width, places[start : start + batch_size])
        for width, places in sorted(by_width.items())
        for start in range(0, len(places), batch_size)
    ]


def padded(sequences: Sequence[Sequence[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded `tokens` `[B, width]` and their `lengths` `[B]`."""
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    return tokens, torch.tensor([len(sequence) for sequence in sequences])


def last_values(output: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The value head's numbers `[B, S, 1]` at each row's last token: `[B]`, float32."""
    return output.float().squeeze(-1).gather(1, lengths[:, None] - 1).squeeze(1)


class _Sequences(NamedTuple):
    """Right-padded `tokens` `[B, width]` and their `lengths` `[B]`."""

    tokens: torch.Tensor
    lengths: torch.Tensor


class SequenceScorer:
    """A reward model's rewards.

    Args:
        model: this rank's part of the model, or Megatron's wrapper around it.
        runtime: of this rank.
        batch_size: rows that pass through the model together.
    """

    def __init__(self, model: GPTModel, runtime: Runtime, batch_size: int) -> None:
        self.model, self.runtime, self.batch_size = model, runtime, batch_size

    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence, none of them empty; the same `sequences` and result on every rank.

        The replicas share the batches out among them.
        """
        runtime = self.runtime
        shared_out = batches_of(sequences, self.batch_size)
        shared_out += [(1, [])] * (-len(shared_out) % runtime.dp_size)  # replicas may share experts
        mine = shared_out[runtime.dp_rank :: runtime.dp_size]
        batches = [
            (places, self._padded([sequences[place] for place in places], width)) for width, places in mine
        ]

        def by_row(batch: _Sequences, rewards: torch.Tensor) -> list[float]:
            return rewards.tolist()

        return forward_only(self.model, runtime, batches, self._run, by_row, len(sequences))

    def _padded(self, rows: Sequence[Sequence[int]], width: int) -> _Sequences:
        return _Sequences(*padded([*rows, *[(0,)] * (self.batch_size - len(rows))], width))

    def _run(self, batch: _Sequences, model: Any) -> tuple[torch.Tensor, Read]:
        tokens, lengths = (tensor.to(self.runtime.device) for tensor in batch)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return model(tokens, positions, None), lambda output: last_values(output, lengths)
