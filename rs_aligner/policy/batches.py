"""From rows to the micro-batches of one replica: who gets which rows, and how they lie in a line.

A micro-batch is a line: its rows one behind the other, without padding between them. Micro-batches have so
many rows each, of similar length, or as many rows as a number of tokens takes, of about equal sums; every
replica gets as many as any other. Left out on purpose: what is done with a micro-batch (`training.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from rs_aligner.loss import Normalization
from rs_aligner.model.line import Line
from rs_aligner.rollout import TrainingRow

Row = TypeVar("Row", bound=Sized)

MIN_PLACES = 4
"""With fewer rows than this MKL sums a product over a large vocabulary ten times less exactly."""


@dataclass(frozen=True, slots=True)
class Split:
    """How a global batch is cut into micro-batches; no number depends on it.

    Attributes:
        rows: of a micro-batch, at most; of no meaning where there is a limit of tokens.
        tokens: of a micro-batch, at most; a row that is longer goes alone. None for no such limit.
    """

    rows: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B rows in a line of S tokens, and what is learnt of their responses, of R tokens at most.

    Attributes:
        tokens: int64 `[1, S]`, the rows one behind the other, and what fills the line up.
        lengths: of the rows in the line, and of what fills it up.
        responses: tokens of each row's response.
        places: int64 `[N]`, the places of the line whose next token belongs to a response, row by row; never
            fewer than `MIN_PLACES`: those behind the last response token mean nothing.
        mask: bool `[B, R]`, True on response tokens: `[b, t]` stands for token `t` of row `b`'s response.
        weights: float32 `[B]`, the rows' weights; None where all are 1.
        sampled: float32 `[B, R]`, log-probabilities under the policy that sampled, NaN wherever there is
            none; None where no row has them.
        reference: the same under the reference policy.
        noted: the same as the decoder noted them, to be compared.
        reference_logits: float32 `[N, V_rank]`, this rank's columns of that policy's logits; None where no
            term of the objective needs them.
        filled: tokens at the line's end that only fill it up.
    """

    tokens: torch.Tensor
    lengths: tuple[int, ...]
    responses: tuple[int, ...]
    places: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor | None = None
    sampled: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    noted: torch.Tensor | None = None
    reference_logits: torch.Tensor | None = None
    filled: int = 0

    @property
    def labels(self) -> torch.Tensor:
        """The response tokens, behind `places`: int64 `[1, N]`."""
        return self.tokens[:, self.places + 1]

    @property
    def line(self) -> Line:
        """What the model has to know of the rows."""
        return Line.of(self.lengths, self.places)

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """What was found at `places`, `[N, ...]`, by response token: `[B, R, ...]`, zero elsewhere."""
        values = values[: sum(self.responses)]
        if len(values) == self.mask.numel():  # nothing is missing
            return values.unflatten(0, self.mask.shape)
        found = values.new_zeros(*self.mask.shape, *values.shape[1:])
        return found.index_put((self.mask,), values)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in found.items():
            found[name] = value.to(device) if isinstance(value, torch.Tensor) else value
        return MicroBatch(**found)


def micro_batches(
    rows: Sequence[TrainingRow], split: Split, dp_rank: int, dp_size: int, *, multiple: int = 1
) -> list[MicroBatch]:
    """This replica's share of a global batch.

    Where the rows do not suffice, a micro-batch without any response token fills the place. Lines are filled
    up to a `multiple` (sequence parallelism cuts them evenly).
    """
    return [collate(chunk, multiple) for chunk in deal(rows, split, dp_rank, dp_size)]


def deal(
    rows: Sequence[Row], split: Split, dp_rank: int, dp_size: int, *, cost: Callable[[Row], int] = len
) -> list[list[Row]]:
    """This replica's chunks of rows; as many as any other's, if empty.

    Args:
        rows: the same on every rank.
        split: how many rows or tokens a chunk has.
        dp_rank, dp_size: which replica, of how many.
        cost: the tokens of a row in a line.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    if split.tokens is None:
        chunks = [order[start : start + split.rows] for start in range(0, len(order), split.rows)]
        chunks += [[] for _ in range(-len(chunks) % dp_size)]
        return [[rows[i] for i in chunk] for chunk in chunks[dp_rank::dp_size]]
    costs = [cost(row) for row in rows]
    chunks = _balanced(costs, split.tokens, dp_size)
    # The fullest of each round side by side, so that no replica waits long for another.
    chunks.sort(key=lambda chunk: (-sum(costs[i] for i in chunk), chunk))
    return [[rows[i] for i in sorted(chunk)] for chunk in chunks[dp_rank::dp_size]]


def _balanced(costs: Sequence[int], most: int, dp_size: int) -> list[list[int]]:
    """Places of rows in few chunks of at most `most` tokens, a multiple of `dp_size`.

    The longest row that is left goes where there is least so far; where that is too full, there is one round
    of chunks more. Source: Graham, "Bounds on multiprocessing timing anomalies" (1969), the rule.
    """
    longest_first = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    number = -(-sum(costs) // most)
    while True:
        number += -number % dp_size
        chunks: list[list[int]] = [[] for _ in range(number)]
        sums = [0] * number
        for i in longest_first:
            least = min(range(number), key=sums.__getitem__)
            if chunks and sums[least] and sums[least] + costs[i] > most:
                break
            chunks[least].append(i)
            sums[least] += costs[i]
        else:
            return chunks
        number += 1


def collate(rows: Sequence[TrainingRow], multiple: int) -> MicroBatch:
    """One micro-batch of the rows; without any, a line of padding."""
    tokens = [token for row in rows for token in (*row.prompt, *row.response)]
    lengths = [len(row) for row in rows]
    # Two tokens at least, so that every place has a next one.
    missing = max(2 - len(tokens), -len(tokens) % multiple)
    missing += -(len(tokens) + missing) % multiple
    if missing:
        tokens += [0] * missing
        lengths.append(missing)
    places: list[int] = []
    start = 0
    for row in rows:
        places += range(start + len(row.prompt) - 1, start + len(row) - 1)
        start += len(row)
    places += [0] * (MIN_PLACES - len(places))
    responses = tuple(len(row.response) for row in rows) or (0,)
    longest = max(1, *responses)
    sampled = _aligned(rows, "sampled_log_probs", longest)
    weights = torch.tensor([row.weight for row in rows] or [1.0])
    return MicroBatch(
        torch.tensor([tokens]),
        tuple(lengths),
        responses,
        torch.tensor(places),
        torch.arange(longest) < torch.tensor(responses)[:, None],
        # None leaves the plain recipe exactly as it is, to the last bit.
        weights if sampled is not None or (weights != 1).any() else None,
        sampled,
        _aligned(rows, "reference_log_probs", longest),
        _aligned(rows, "decoder_log_probs", longest),
        filled=missing,
    )


def _aligned(rows: Sequence[TrainingRow], name: str, longest: int) -> torch.Tensor | None:
    """Log-probabilities of response tokens, NaN behind them: `[B, longest]`.

    Raises:
        ValueError: a row has another number of them than response tokens, or one that is not finite.
    """
    if not any(getattr(row, name) for row in rows):
        return None
    aligned = torch.full((len(rows), longest), torch.nan)
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
        aligned[i, : len(values)] = values
    return aligned


def denominator(rows: Sequence[TrainingRow], normalization: Normalization) -> int:
    """What the global batch's loss is divided by: its sequences, or its response tokens."""
    return len(rows) if normalization == "sequence" else sum(len(row.response) for row in rows)
