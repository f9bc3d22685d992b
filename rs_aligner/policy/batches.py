"""From rows to the micro-batches of one replica: who gets which rows, and how they are padded.

Rows of similar length go together, and every replica gets as many micro-batches as any other. Left out on
purpose: packing several rows into one, and what is done with a micro-batch (`training.py`).
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from rs_aligner.loss import Normalization, response_mask
from rs_aligner.rollout import TrainingRow

Row = TypeVar("Row", bound=Sized)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded rows, in next-token space where it says `S - 1`.

    Attributes:
        tokens: int64 `[B, S]`.
        mask: bool `[B, S - 1]`, True on response tokens.
        weights: float32 `[B]`, the rows' weights; None where all are 1.
        sampled: float32 `[B, S - 1]`, log-probabilities under the policy that sampled, NaN wherever there is
            none; None where no row has them.
        reference: the same under the reference policy.
        reference_logits: float32 `[B, S - 1, V_rank]`, this rank's columns of that policy's logits; None
            where no term of the objective needs them.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor | None = None
    sampled: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    reference_logits: torch.Tensor | None = None

    @property
    def positions(self) -> torch.Tensor:
        """The place of each token in its row: `[B, S]`."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)

    @property
    def labels(self) -> torch.Tensor:
        """The token after each, `[B, S]`; the last column means nothing and is never in the mask."""
        return torch.cat([self.tokens[:, 1:], self.tokens[:, :1]], dim=1)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, tensor in found.items():
            found[name] = None if tensor is None else tensor.to(device)
        return MicroBatch(**found)


def micro_batches(
    rows: Sequence[TrainingRow], size: int, dp_rank: int, dp_size: int, *, multiple: int = 1
) -> list[MicroBatch]:
    """This replica's share of a global batch, rows of similar length together.

    Where they do not suffice, a micro-batch without any response token fills the place. Lengths are
    padded to a `multiple` (sequence parallelism cuts them evenly).
    """
    return [collate(chunk, multiple) for chunk in deal(rows, size, dp_rank, dp_size)]


def deal(rows: Sequence[Row], size: int, dp_rank: int, dp_size: int) -> list[list[Row]]:
    """This replica's chunks of at most `size` rows of similar length; as many as any other's, if empty."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    chunks = [[rows[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
    per_rank = -(-len(chunks) // dp_size)
    chunks += [[] for _ in range(per_rank * dp_size - len(chunks))]
    return chunks[dp_rank::dp_size]


def collate(rows: Sequence[TrainingRow], multiple: int) -> MicroBatch:
    """One micro-batch of the rows; without any, one row of padding."""
    if not rows:
        width = max(2, multiple)
        return MicroBatch(
            torch.zeros(1, width, dtype=torch.long), torch.zeros(1, width - 1, dtype=torch.bool)
        )
    width = -(-max(2, *map(len, rows)) // multiple) * multiple
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row.prompt + row.response)
    prompt_lengths = torch.tensor([len(row.prompt) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    sampled = _aligned(rows, "sampled_log_probs", width)
    weights = torch.tensor([row.weight for row in rows])
    return MicroBatch(
        tokens,
        response_mask(prompt_lengths, lengths, width),
        # None leaves the plain recipe exactly as it is, to the last bit.
        weights if sampled is not None or (weights != 1).any() else None,
        sampled,
        _aligned(rows, "reference_log_probs", width),
    )


def _aligned(rows: Sequence[TrainingRow], name: str, width: int) -> torch.Tensor | None:
    """Log-probabilities of response tokens where these are predicted, NaN elsewhere: `[B, width - 1]`.

    Raises:
        ValueError: a row has another number of them than response tokens, or one that is not finite.
    """
    if not any(getattr(row, name) for row in rows):
        return None
    aligned = torch.full((len(rows), width - 1), torch.nan)
    for i, row in enumerate(rows):
        values = torch.tensor(getattr(row, name))
        if not len(values):
            continue
        finite = int(values.isfinite().sum())
        if not len(values) == finite == len(row.response):
            raise ValueError(
                f"{name} must be a finite number for each of the {len(row.response)} response tokens, "
                f"not {len(values)} numbers, {finite} of them finite"
            )
        aligned[i, len(row.prompt) - 1 : len(row) - 1] = values
    return aligned


def denominator(rows: Sequence[TrainingRow], normalization: Normalization) -> int:
    """What the global batch's loss is divided by: its sequences, or its response tokens."""
    return len(rows) if normalization == "sequence" else sum(len(row.response) for row in rows)
