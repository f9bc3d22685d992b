"""What a term of the objective is: its share of the loss of a micro-batch, and its figures.

A term is one file beside this one and one line in `__init__`. It says itself which rows it applies to, by
what they bring (`TrainingRow`), and what its figures are divided by. Everything is counted over the whole
global batch first, so what micro-batches and ranks come to simply adds up; how rows are cut changes nothing.

Tensors have a row's response tokens: position `t` is token `t` of its response, and T the longest response of
the micro-batch. Left out on purpose: how the log-probabilities come about (`policy`), and the weights of rows
(`objective.rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rs_aligner.loss import Normalization, normalized
from rs_aligner.rollout import TrainingRow


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True, slots=True)
class Logits:
    """What the policy says of every token that might come next, perhaps split over ranks.

    Under tensor parallelism each rank has the columns of its part of the vocabulary. What is summed with
    `total` is the sum over all of it, the same on every rank, with the right gradient.

    Attributes:
        columns: float32 `[B, T, V_rank]`, this rank's logits, from token id `first` on.
        first: the token of the first column.
        add, largest: of tensors of equal shape on all ranks, their sum and their maximum; `add` as Megatron's
            `reduce_from_tensor_model_parallel_region`.
        spread: a tensor that is the same on all ranks, to be used beside columns: it collects the gradient of
            all of them, as Megatron's `copy_to_tensor_model_parallel_region`.
    """

    columns: Tensor
    first: int = 0
    add: Callable[[Tensor], Tensor] = _alone
    largest: Callable[[Tensor], Tensor] = _alone
    spread: Callable[[Tensor], Tensor] = _alone

    def log_softmax(self) -> Tensor:
        """The log-probability of this rank's tokens: `[B, T, V_rank]`."""
        top_BT = self.largest(self.columns.detach().amax(dim=-1))
        shifted_BTV = self.columns - top_BT.unsqueeze(-1)
        log_total_BT = self.total(shifted_BTV.exp()).log()
        return shifted_BTV - self.spread(log_total_BT).unsqueeze(-1)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `[B, T, V_rank]` over the whole vocabulary: `[B, T]`."""
        return self.add(values.sum(dim=-1))


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a term sees of a micro-batch.

    Attributes:
        log_probs: float32 `[B, T]`, of each response token under the policy; what the gradient flows through.
        mask: bool `[B, T]`, True on response tokens. Behind them anything may stand, NaN included.
        denominator: of the loss, counted over the whole global batch: its rows or its response tokens.
        normalization: which of the two; `loss.masked_nll` says what it means.
        counts: of the global batch, by figure, what the term's `counts` said; figures that count nothing are
            not in it, and are not asked for.
        weights: float32 `[B]`, of the rows; None where all are 1.
        sampled_log_probs, reference_log_probs: float32 `[B, T]`, under the policy that sampled and under the
            starting one, NaN wherever a row has none; None where no row has any.
        logits: where a term needs them, else None.
        reference_logits: those of the starting policy, likewise; no gradient flows into them.
    """

    log_probs: Tensor
    mask: Tensor
    denominator: int
    normalization: Normalization
    counts: Mapping[str, int] = field(default_factory=dict)
    weights: Tensor | None = None
    sampled_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None
    logits: Logits | None = None
    reference_logits: Logits | None = None

    def normalized(self, values: Tensor, mask: Tensor) -> Tensor:
        """The share of the loss of `[B, T]`, zero where masked out: a mean as `masked_nll` takes it."""
        return normalized(values, mask, self.denominator, self.normalization)


@dataclass(frozen=True, slots=True)
class Share:
    """What a micro-batch adds to the global batch.

    Attributes:
        loss: a scalar; None where the term does not apply to any row.
        figures: scalars by name, each divided by its count already. What is missing adds 0.
    """

    loss: Tensor | None = None
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Term:
    """A term of the objective."""

    needs_logits: bool = False
    """Whether `Inputs.logits` are there; they take `4 B T V` bytes more where no other term needs them."""

    needs_reference_logits: bool = False
    """Whether `Inputs.reference_logits` are there: a forward pass more, and as much memory again."""

    def counts(self, rows: Sequence[TrainingRow]) -> dict[str, int]:
        """What each figure is divided by, counted over the global batch; 0 for a figure that there is not.

        Raises:
            ValueError: the rows are not for this term as it is set.
        """
        return {}

    def share(self, inputs: Inputs) -> Share:
        """Loss and figures of a micro-batch."""
        raise NotImplementedError
