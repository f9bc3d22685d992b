"""How far the decoder's log-probabilities are from the trainer's: `mismatch/mean` and `mismatch/p99`.

The two compute the same number by other ways: other kernels, another order of sums, perhaps another type, or
another program. What they differ in is of every response token `|noted - computed|`, in nats: `noted` by the
decoder when it drew the token (before temperature and filters), `computed` by the forward pass that trains on
it. They are compared only as long as the weights are those that drew the token.

Sums over micro-batches and ranks simply add up: of the differences, and of a histogram of them, with
`PER_DECADE` bins to a power of ten, from which the percentile is taken. They are added up beside the loss and
not with it, so that no bit of the loss depends on how many figures there are. Left out on purpose: which rows
are compared (`objective.rows`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from rs_aligner.rollout import TrainingRow

PER_DECADE = 100
"""Bins: their edges are 2.3 % apart, so the middle is off by 1.2 % at most."""
SMALLEST, LARGEST = -8, 4
"""Powers of ten: below the one a difference is taken for 0, above the other for that."""
BINS = (LARGEST - SMALLEST) * PER_DECADE + 2
QUANTILE = 0.99


class Mismatch:
    """Differences of a global batch.

    Args:
        rows: of the batch, the same on every rank.
        device: where sums are kept.
    """

    def __init__(self, rows: Sequence[TrainingRow], device: torch.device) -> None:
        self.tokens = sum(len(row.decoder_log_probs) for row in rows)
        # The differences' sum, the bins, and a place for what is none.
        self._sums = torch.zeros(1 + BINS + 1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, log_probs: torch.Tensor, noted: torch.Tensor | None) -> None:
        """Take a micro-batch in, without waiting for the device.

        Args:
            log_probs: float32 `[B, T]`, the trainer's.
            noted: float32 `[B, T]`, the decoder's, NaN wherever there is none; None where no row has any.
        """
        if not self.tokens or noted is None:
            return
        is_there = ~noted.isnan()
        difference = torch.where(is_there, log_probs.double() - noted.double(), 0.0).abs()
        self._sums[0] += difference.sum()
        bins = ((difference.log10() - SMALLEST) * PER_DECADE).floor().clamp(-1, BINS - 2)
        # A forward pass that came to NaN has no place, and the loss tells of it.
        places = 1 + torch.where(is_there & ~bins.isnan(), 1 + bins, BINS).long().flatten()
        self._sums.index_add_(0, places, torch.ones_like(places, dtype=torch.float64))

    def figures(self, *, counts: bool) -> dict[str, float]:
        """Mean and percentile over all ranks, the same on each; nothing where no row is compared.

        Args:
            counts: whether what this rank saw counts; one rank of those that see the same tokens.
        """
        if not self.tokens:
            return {}
        sums = self._sums if counts else torch.zeros_like(self._sums)
        dist.all_reduce(sums)
        total, *bins = sums.tolist()
        return {"mismatch/mean": total / self.tokens, "mismatch/p99": _percentile(bins[:BINS], self.tokens)}


def _percentile(bins: Sequence[float], count: int) -> float:
    """The middle of the bin, by logarithms, that the `ceil(QUANTILE count)`-th smallest is in."""
    below, rank = 0.0, math.ceil(QUANTILE * count)
    for place, number in enumerate(bins):
        below += number
        if below >= rank:
            return 10 ** (SMALLEST + (place - 0.5) / PER_DECADE) if place else 0.0
    raise AssertionError(f"{below:.0f} of {count} tokens were compared")
