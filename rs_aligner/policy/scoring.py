"""Rewards of token sequences by a reward model, in batches of fixed shapes.

A matrix product rounds differently in another shape, so a sequence's reward could change, in the last bits,
with what else is scored beside it. Here every sequence is padded to a multiple of `WIDTH`, scored with others
of that width only, and a batch that is not full is filled up. So the shape that a sequence is scored in
depends on its own length and on `batch_size`, and never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func

from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.pairs import last_values, padded, run_model

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


class SequenceScorer:
    """A reward model's rewards.

    Args:
        model: this rank's part of the model, or Megatron's wrapper around it.
        runtime: this rank's place.
        batch_size: rows that pass through the model together.
    """

    def __init__(self, model: GPTModel, runtime: Runtime, batch_size: int) -> None:
        self.model, self.runtime, self.batch_size = model, runtime, batch_size

    @torch.no_grad()
    def __call__(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence, none of them empty; the same `sequences` and result on every rank.

        The replicas share the batches out among them.
        """
        runtime = self.runtime
        mine = batches_of(sequences, self.batch_size)[runtime.dp_rank :: runtime.dp_size]
        self.model.eval()
        values: list[list[float]] = []
        if mine:
            found = get_forward_backward_func()(
                forward_step_func=self._forward,
                data_iterator=self._batches(sequences, mine),
                model=[self.model],
                num_microbatches=len(mine),
                seq_length=max(width for width, _ in mine),
                micro_batch_size=self.batch_size,
                forward_only=True,
                collect_non_loss_data=True,
            )
            values = [rewards.tolist() for rewards in found]
        speaks = runtime.is_last_stage and runtime.tp_rank == 0
        pairs = [
            (place, value)
            for (_, places), rewards in zip(mine, values, strict=False)  # no values before the last stage
            for place, value in zip(places, rewards, strict=False)  # the rest of a batch is filling
        ]
        everyone: list[list[tuple[int, float]]] = [[] for _ in range(runtime.world_size)]
        dist.all_gather_object(everyone, pairs if speaks else [], group=runtime.objects)
        rewards = dict(pair for rank in everyone for pair in rank)
        return [rewards[place] for place in range(len(sequences))]

    def _batches(
        self, sequences: Sequence[Sequence[int]], mine: Sequence[tuple[int, list[int]]]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for width, places in mine:
            rows = [sequences[place] for place in places]
            yield padded([*rows, *[(0,)] * (self.batch_size - len(rows))], width)

    def _forward(self, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], model: Any) -> Any:
        tokens, lengths = (tensor.to(self.runtime.device) for tensor in next(batches))
        self.runtime.use_threads(model, tokens.numel())  # of this batch only: it depends on no other

        def rewards(output: torch.Tensor, non_loss_data: bool = True) -> torch.Tensor:
            return last_values(output, lengths)

        return run_model(model, tokens), rewards
