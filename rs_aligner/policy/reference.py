"""The starting policy, without a second model: a copy of the weights that takes their place for a while.

What a KL term and a restart need of the starting policy is its weights; everything else is the trained
model's own. So the copy, on the CPU or on the device, changes places with the weights, a tensor at a time,
and changes back with the very same bits. The weights stay where they are in memory, in the buffers of
Megatron's DDP, which the optimizer and the decoder read; the float32 twins that the optimizer keeps of bf16
weights are not touched by a swap. Left out on purpose: a reference that follows the policy, and running both
policies at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from rs_aligner.model.host_memory import copies_on_device, room_on_host
from rs_aligner.policy.adam_states import forget, parts_of
from rs_aligner.policy.batches import MicroBatch, Split, collate, deal
from rs_aligner.policy.forward import Read, forward_only, read_off
from rs_aligner.policy.logits import run_line
from rs_aligner.policy.training import BaseTrainer
from rs_aligner.rollout import TrainingRow


class StartingWeights:
    """A copy of a model's weights as they are now, of this rank's part.

    Weights that are not trained are what they were: of a model with adapters these alone are copied.

    Args:
        trainer: the model with its optimizer.
        offload: keeps the copy in the CPU's memory; otherwise on the model's device.
    """

    def __init__(self, trainer: BaseTrainer, offload: bool) -> None:
        self.trainer = trainer
        self._parameters = [one for one in trainer.ddp.module.parameters() if one.requires_grad]
        weights = [parameter.data for parameter in self._parameters]
        self._copies = room_on_host(weights) if offload else copies_on_device(weights)
        for copy, tensor in zip(self._copies, weights, strict=True):
            copy.save(tensor)
        self._is_in_place = False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the starting weights inside; nothing may train or save meanwhile."""
        assert not self._is_in_place, "the starting weights are in their place already"
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def restore(self) -> None:
        """Give the model the starting weights for good, and the optimizer no memory of the others."""
        assert not self._is_in_place, "the trained weights are set aside"
        for parameter, copy in zip(self._parameters, self._copies, strict=True):
            copy.restore(parameter.data)
        _forget(self.trainer)

    def _swap(self) -> None:
        for parameter, copy in zip(self._parameters, self._copies, strict=True):
            copy.swap(parameter.data)
        self._is_in_place = not self._is_in_place


@torch.no_grad()
def _forget(trainer: BaseTrainer) -> None:
    """Make the optimizer as new, around the weights that the model has now."""
    for part in parts_of(trainer.optimizer):
        for _ in trainer.offload.each(part):
            part.reload_model_params()  # its float32 twins of bf16 weights
            forget(part)
        for group in part.optimizer.param_groups:
            group.pop("step", None)  # where fused optimizers count


def response_log_probs(
    trainer: BaseTrainer, rows: Sequence[TrainingRow], split: Split
) -> list[tuple[float, ...]]:
    """The log-probability of each response token under the weights that the model has now.

    The same forward pass as in training. The replicas share the rows out among them.

    Args:
        trainer: the model.
        rows: the same on every rank.
        split: how they are cut into micro-batches.

    Returns:
        For each row as many numbers as it has response tokens; the same on every rank.
    """
    runtime = trainer.runtime
    placed = [_Placed(place, row) for place, row in enumerate(rows)]
    mine = deal(placed, split, runtime.dp_rank, runtime.dp_size)
    batches = [
        ([one.place for one in chunk], collate([one.row for one in chunk], trainer.multiple))
        for chunk in mine
    ]

    def run(batch: MicroBatch, model: Any) -> tuple[torch.Tensor, Read]:
        batch = batch.to(runtime.device)
        return run_line(model, batch, labels=batch.labels), lambda output: -output[0].float()

    def by_row(batch: MicroBatch, log_probs: torch.Tensor) -> list[tuple[float, ...]]:
        parts = log_probs.cpu()[: sum(batch.responses)].split(batch.responses)
        return [tuple(part.tolist()) for part in parts]

    return forward_only(trainer.ddp, runtime, batches, run, by_row, len(rows))


def with_starting_logits(start: StartingWeights, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """This replica's micro-batches with the starting policy's logits, on the ranks of the last stage.

    They stay on the device for the optimizer step: `4 V` bytes a response token, over the tensor-parallel
    ranks.
    """
    trainer = start.trainer
    runtime = trainer.runtime

    def run(batch: MicroBatch, model: Any) -> tuple[torch.Tensor, Read]:
        batch = batch.to(runtime.device)
        return run_line(model, batch, labels=None), lambda output: output[0].float()

    with start.in_place():
        found = read_off(trainer.ddp, runtime, batches, run)
    if not found:
        return list(batches)
    return [replace(batch, reference_logits=x) for batch, x in zip(batches, found, strict=True)]


class _Placed:
    """A row that remembers its place while rows are dealt out by length."""

    def __init__(self, place: int, row: TrainingRow) -> None:
        self.place, self.row = place, row

    def __len__(self) -> int:
        return len(self.row)
