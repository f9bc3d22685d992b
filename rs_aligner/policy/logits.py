"""From the model's logits to what a term of the objective may see of them, in whatever layout.

Only where a term needs them. Else Megatron makes log-probabilities of its logits within the model, and lets
them go.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)

from rs_aligner.objective.terms import Logits


def predictions(output: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Logits]:
    """The loss of each next token, `[B, S]`, as the model gives it with labels; and the logits.

    Args:
        output: `[B, S, V_rank]`, this rank's part of the logits.
        labels: int64 `[B, S]`, the token after each.

    Returns:
        The losses, and the logits of all positions but the last, behind which there is nothing.
    """
    # Megatron's function writes over the float32 logits that it is given.
    losses_BS = vocab_parallel_cross_entropy(output.to(torch.float32, copy=True), labels)
    return losses_BS, as_logits(output[:, :-1].float())


def as_logits(columns: torch.Tensor) -> Logits:
    """This rank's columns, `[B, T, V_rank]`, with what sums over those of all ranks."""
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
