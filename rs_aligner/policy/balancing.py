"""The pass before a mixture's training step in which its routers' loss is counted (`model/balance.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rs_aligner.model.balance import Balance
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.batches import MicroBatch
from rs_aligner.policy.forward import Read, read_off
from rs_aligner.policy.logits import run_line


def routers_loss(model: Any, runtime: Runtime, batches: Sequence[MicroBatch]) -> dict[str, float]:
    """The routers' loss on a global batch, whose gradient comes with that of the next pass over it.

    Every rank must call it. It costs a forward pass, and nothing where the model has no such loss.

    Args:
        model: this rank's part, in Megatron's DDP.
        runtime: of this rank.
        batches: this replica's micro-batches.

    Returns:
        `loss/routers`: it, times its coefficient, the same on every rank; nothing where the model has none.
    """
    balance: Balance | None = getattr(model.module, "balance", None)
    if balance is None:
        return {}

    def run(batch: MicroBatch, model: Any) -> tuple[torch.Tensor, Read]:
        batch = batch.to(runtime.device)
        return run_line(model, batch, labels=batch.labels), lambda output: output.new_zeros(())

    with balance.counting(runtime, in_parts=model.config.sequence_parallel):
        read_off(model, runtime, batches, run)
    return {"loss/routers": balance.loss}
