"""The reward model's optimizer step: the Bradley-Terry loss of preference pairs.

A pair's two answers go through the model in one micro-batch, a line without padding. The reward of an answer
is the value head's number at its last token. The denominator is the number of pairs of the whole batch, so
loss and gradient do not depend on micro-batches or layout. Left out on purpose: margins, ties, several
answers a prompt, and a term that centres the rewards (only differences matter to best-of-N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch

from rs_aligner.loss import bradley_terry
from rs_aligner.model.line import Line
from rs_aligner.policy.batches import Split, deal
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
    """B pairs as 2 B rows in a line, chosen ones first.

    Attributes:
        tokens: int64 `[1, S]`.
        lengths: of the rows, and of what fills the line up.
        last: int64 `[2 B]`, the place of each row's last token.
        mask: bool `[B]`, False for a pair that only fills a place.
    """

    tokens: torch.Tensor
    lengths: tuple[int, ...]
    last: torch.Tensor
    mask: torch.Tensor


def _collate(pairs: Sequence[PreferencePair], multiple: int) -> PairBatch:
    mask = torch.ones(max(len(pairs), 1), dtype=torch.bool)
    if not pairs:
        pairs, mask = [PreferencePair((0,), (0,))], torch.zeros(1, dtype=torch.bool)
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    lengths = list(map(len, rows))
    last = torch.tensor(lengths).cumsum(0) - 1
    missing = -sum(lengths) % multiple
    tokens = torch.tensor([[*chain.from_iterable(rows), *[0] * missing]])
    return PairBatch(tokens, (*lengths, missing) if missing else tuple(lengths), last, mask)


class PairTrainer(BaseTrainer):
    """The reward model's optimizer step, on preference pairs."""

    def step(self, pairs: Sequence[PreferencePair], *, split: Split, learning_rate: float) -> PairStats:
        """One optimizer step on a global batch, the same `pairs` on every rank; `split` counts pairs."""
        loss, accuracy = self.gradients(pairs, split=split)
        return PairStats(loss, accuracy, self.update(learning_rate), learning_rate)

    def gradients(self, pairs: Sequence[PreferencePair], *, split: Split) -> tuple[float, float]:
        """Leave the global batch's gradient in the parameters' `main_grad`; return its loss and accuracy."""
        chunks = deal(pairs, split, self.runtime.dp_rank, self.runtime.dp_size, cost=_tokens)
        batches = [_collate(chunk, self.multiple) for chunk in chunks]
        forward = partial(self._forward, divisor=len(pairs))
        loss, accuracy = self.accumulate(batches, forward, num_sums=2)
        return loss, accuracy

    def _forward(self, batch: PairBatch, model: Any, *, divisor: int) -> Any:
        device = self.runtime.device
        last, mask, line = batch.last.to(device), batch.mask.to(device), Line.of(batch.lengths)

        def sums(output: torch.Tensor) -> torch.Tensor:
            chosen, rejected = output.float()[0, :, 0][last].chunk(2)
            is_right = ((chosen > rejected) & mask).sum() / divisor
            return torch.stack([bradley_terry(chosen, rejected, mask, divisor), is_right])

        output = model(batch.tokens.to(device), line.positions(device)[None], None, packed_seq_params=line)
        return output, sums


def _tokens(pair: PreferencePair) -> int:
    return len(pair.chosen) + len(pair.rejected)
