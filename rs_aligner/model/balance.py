"""The load-balancing loss of a mixture's routers, over a whole global batch whatever it is cut into.

Source: Fedus et al., "Switch transformers" (2021), equations 4 to 6, as `transformers` has it: of E experts
the sum of `f_i P_i`, times E, with `f_i` how often a token goes to expert i, and `P_i` its mean probability,
both over all tokens of all layers. It is a product of two sums over the batch. So both are counted in a
forward pass of its own; with them, what a token adds to the gradient depends on no other. Left out on
purpose: the loss by micro-batch or by layer, which is another one for each way to cut a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from rs_aligner.model.architecture import Experts
from rs_aligner.model.runtime import Runtime


class Balance:
    """What the routers of this rank's layers have in common.

    Args:
        experts: of a layer.

    Attributes:
        loss: of the batch that was counted last, times its coefficient.
    """

    def __init__(self, experts: Experts) -> None:
        self.experts, self.loss = experts, 0.0
        self._sums: torch.Tensor | None = None
        self._shares: torch.Tensor | None = None  # `[E]`: what a token's probability of each expert adds

    def watched(
        self,
        counts: torch.Tensor,
        probabilities: torch.Tensor,
        numbers: torch.Tensor,
        fills_up: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the chosen experts count, `[T, K]`, as it was; in training with the loss attached to it.

        Args:
            counts: what the chosen experts count.
            probabilities: of all experts, float32 `[T, E]`.
            numbers: of the chosen ones, `[T, K]`.
            fills_up: bool `[T]`, True for what only fills a line up; None for nothing.
        """
        if fills_up is not None:
            probabilities, numbers = probabilities[~fills_up], numbers[~fills_up]
        if self._sums is not None:
            self._sums[0] += numbers.flatten().bincount(minlength=self.experts.number)
            self._sums[1] += probabilities.sum(0, dtype=torch.float64)
        elif self._shares is not None and torch.is_grad_enabled():
            attached: torch.Tensor = _WithLoss.apply(counts, probabilities.sum(0) @ self._shares)
            return attached
        return counts

    @contextmanager
    def counting(self, runtime: Runtime, *, in_parts: bool) -> Iterator[None]:
        """Count what passes inside; every rank must call it.

        Args:
            runtime: of this rank.
            in_parts: whether tensor-parallel ranks have a part of the tokens each, and not all of them.
        """
        sums = torch.zeros(2, self.experts.number, dtype=torch.float64, device=runtime.device)
        self._sums, self._shares = sums, None
        try:
            yield
        finally:
            self._sums = None
        if runtime.tp_rank > 0 and not in_parts:
            sums.zero_()  # the first has counted the same
        dist.all_reduce(sums)
        tokens = sums[0].sum() / self.experts.per_token  # of each layer
        shares = self.experts.balance * self.experts.number / tokens**2 * sums[0]
        self.loss = float(shares @ sums[1])
        self._shares = shares.float()


class _WithLoss(torch.autograd.Function):
    """A tensor as it is, with a loss beside it, whose gradient is 1."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grads[0], grads[0].new_ones(())
