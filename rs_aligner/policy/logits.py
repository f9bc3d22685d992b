"""A micro-batch through the model, and from its logits to what a term of the objective may see of them.

Logits are there for response tokens only, and only where a term needs them. Else the model makes
log-probabilities of them, and lets them go.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)

from rs_aligner.objective.terms import Logits
from rs_aligner.policy.batches import MicroBatch


def run_line(model: Any, batch: MicroBatch, *, labels: torch.Tensor | None) -> torch.Tensor:
    """Losses `[1, N]` with labels, logits `[1, N, V_rank]` without; hidden states before the last stage."""
    line = batch.line
    positions = line.positions(batch.tokens.device)[None]
    more = {}
    if batch.filled and model.config.num_moe_experts:  # their routers' loss is of real tokens
        more["padding_mask"] = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]
        more["padding_mask"] = more["padding_mask"] >= batch.tokens.shape[1] - batch.filled
    output: torch.Tensor = model(batch.tokens, positions, None, labels=labels, packed_seq_params=line, **more)
    return output


def predictions(output: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, Logits]:
    """The loss of each response token, `[1, N]`, as the model gives it with labels; and the logits, by row.

    Args:
        output: `[1, N, V_rank]`, this rank's part of the logits.
        batch: what they are of.
    """
    # Megatron's function writes over the float32 logits that it is given.
    losses_1N = vocab_parallel_cross_entropy(output.to(torch.float32, copy=True), batch.labels)
    return losses_1N, as_logits(batch.by_row(output[0].float()))


def as_logits(columns: torch.Tensor) -> Logits:
    """This rank's columns, `[B, R, V_rank]`, with what sums over those of all ranks."""
    return Logits(
        columns,
        parallel_state.get_tensor_model_parallel_rank() * columns.shape[-1],
        reduce_from_tensor_model_parallel_region,
        _largest,
        copy_to_tensor_model_parallel_region,
    )


def _largest(values: torch.Tensor) -> torch.Tensor:
    """The maximum over the tensor-parallel ranks, without a gradient."""
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MAX, parallel_state.get_tensor_model_parallel_group())
    return values
