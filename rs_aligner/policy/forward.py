"""A forward pass alone: micro-batches shared out among the replicas, and what is read off them by row.

What a reference's log-probabilities and a reward model's scores have in common. Left out on purpose: how rows
become micro-batches; each has its own reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from rs_aligner.model.runtime import Runtime

Result = TypeVar("Result")
Read = Callable[[torch.Tensor], torch.Tensor]


class Batch(Protocol):
    """Rows that pass through the model together: `tokens` `[B, S]`."""

    @property
    def tokens(self) -> torch.Tensor: ...


B = TypeVar("B", bound=Batch)


def forward_only(
    model: Any,
    runtime: Runtime,
    batches: Sequence[tuple[Sequence[int], B]],
    run: Callable[[B, Any], tuple[torch.Tensor, Read]],
    split: Callable[[B, torch.Tensor], Sequence[Result]],
    count: int,
) -> list[Result]:
    """What is read off the model's output for each of `count` rows, in their order; the same on every rank.

    Args:
        model: this rank's part, or Megatron's wrapper around it.
        runtime: of this rank.
        batches: this replica's micro-batches, each with the places of its rows among all. What only fills a
            batch up stands behind its rows and has no place.
        run: `f(batch, model)`: the model's output, and what reads the results off it on the last stage.
        split: what was read off a batch, by row.
        count: rows over all replicas.
    """
    if not count:
        return []
    found = read_off(model, runtime, [batch for _, batch in batches], run)
    mine: list[tuple[int, Result]] = []
    if runtime.is_last_stage and runtime.tp_rank == 0:
        for (places, batch), values in zip(batches, found, strict=True):
            mine += zip(places, split(batch, values), strict=False)
    everyone: list[list[tuple[int, Result]]] = [[] for _ in range(runtime.world_size)]
    dist.all_gather_object(everyone, mine, group=runtime.objects)
    by_place = dict(pair for rank in everyone for pair in rank)
    return [by_place[place] for place in range(count)]


@torch.no_grad()
def read_off(
    model: Any, runtime: Runtime, batches: Sequence[B], run: Callable[[B, Any], tuple[torch.Tensor, Read]]
) -> list[torch.Tensor]:
    """What is read off the output for each of this replica's micro-batches; nothing before the last stage.

    Args:
        model, runtime, run: as for `forward_only`.
        batches: the same on all ranks of the replica.
    """
    model.eval()

    def forward_step(waiting: Iterator[B], model: Any) -> Any:
        batch = next(waiting)
        runtime.use_threads(model, batch.tokens.numel())  # of this batch only: it depends on no other
        output, read = run(batch, model)
        return output, lambda output, non_loss_data=True: read(output)

    if not batches:
        return []
    found: list[torch.Tensor] = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[model],
        num_microbatches=len(batches),
        seq_length=max(batch.tokens.shape[1] for batch in batches),
        micro_batch_size=max(batch.tokens.shape[0] for batch in batches),
        forward_only=True,
        collect_non_loss_data=True,
    )
    return found
