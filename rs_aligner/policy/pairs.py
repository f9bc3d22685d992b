"""The reward model's optimizer step: the Bradley-Terry loss of preference pairs.

A pair's two answers go through the model side by side, in one micro-batch. The reward of an answer is the
value head's number at its last token. The denominator is the number of pairs of the whole global batch, so
loss and gradient do not depend on micro-batches or layout. Left out on purpose: margins, ties, several
answers a prompt, and a term that centres the rewards (only differences matter to best-of-N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rs_aligner.loss import bradley_terry
from rs_aligner.policy.batches import deal
from rs_aligner.policy.training import BaseTrainer
from rs_aligner.rollout import PreferencePair


@dataclass(frozen=True, slots=True)
class PairStats:
    """What an optimizer step on pairs reports.

    Attributes:
        loss: of the global batch.
        accuracy: share of its pairs whose chosen answer has the higher reward, before the step.
        grad_norm: of the global gradient, before clipping.
        learning_rate: that the step was made with.
    """

    loss: float
    accuracy: float
    grad_norm: float
    learning_rate: float

    @property
    def figures(self) -> dict[str, float]:
        """What goes among the metrics besides."""
        return {"accuracy": self.accuracy}

    @property
    def skipped(self) -> tuple[()]:
        """No pairs: the step was applied."""
        return ()


@dataclass(frozen=True, slots=True)
class PairBatch:
    """B pairs as 2 B right-padded rows, chosen ones first: `tokens` `[2 B, S]`, `lengths` `[2 B]`.

    `mask` `[B]` is False for a pair that only fills a place.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor


def padded(sequences: Sequence[Sequence[int]], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded `tokens` `[B, width]` and their `lengths` `[B]`."""
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    return tokens, torch.tensor([len(sequence) for sequence in sequences])


def last_values(output: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The value head's numbers `[B, S, 1]` at each row's last token: `[B]`, float32."""
    return output.float().squeeze(-1).gather(1, lengths[:, None] - 1).squeeze(1)


def run_model(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Values of all positions on the last pipeline stage, hidden states on the others."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    output: torch.Tensor = model(tokens, positions, None)
    return output


def _collate(pairs: Sequence[PreferencePair], multiple: int) -> PairBatch:
    mask = torch.ones(max(len(pairs), 1), dtype=torch.bool)
    if not pairs:
        pairs, mask = [PreferencePair((0,), (0,))], torch.zeros(1, dtype=torch.bool)
    width = -(-max(len(pair) for pair in pairs) // multiple) * multiple
    tokens, lengths = padded([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], width)
    return PairBatch(tokens, lengths, mask)


class PairTrainer(BaseTrainer):
    """The reward model's optimizer step, on preference pairs."""

    def step(
        self, pairs: Sequence[PreferencePair], *, micro_batch_size: int, learning_rate: float
    ) -> PairStats:
        """One optimizer step on a global batch, the same `pairs` on every rank."""
        loss, accuracy = self.gradients(pairs, micro_batch_size=micro_batch_size)
        return PairStats(loss, accuracy, self.update(learning_rate), learning_rate)

    def gradients(self, pairs: Sequence[PreferencePair], *, micro_batch_size: int) -> tuple[float, float]:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its loss and accuracy."""
        chunks = deal(pairs, micro_batch_size, self.runtime.dp_rank, self.runtime.dp_size)
        batches = [_collate(chunk, self.multiple) for chunk in chunks]
        forward = partial(self._forward, divisor=len(pairs))
        loss, accuracy = self.accumulate(batches, forward, micro_batch_size=2 * micro_batch_size, num_sums=2)
        return loss, accuracy

    def _forward(self, batch: PairBatch, model: Any, *, divisor: int) -> Any:
        device = self.runtime.device
        lengths, mask = batch.lengths.to(device), batch.mask.to(device)

        def sums(output: torch.Tensor) -> torch.Tensor:
            chosen, rejected = last_values(output, lengths).chunk(2)
            is_right = ((chosen > rejected) & mask).sum() / divisor
            return torch.stack([bradley_terry(chosen, rejected, mask, divisor), is_right])

        return run_model(model, batch.tokens.to(device)), sums
