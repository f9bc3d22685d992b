"""Where gradients are added up: over micro-batches in Megatron's buffers, over replicas by its DDP.

Megatron would divide by micro-batches (schedules), by data-parallel ranks (DDP) and by tokens
(`finalize_model_grads`): the config's `calculate_per_token_loss` switches the first two off and `_finalize`
the third. Left out on purpose: buckets by hand, and gradients that travel in fewer bits.
"""

from __future__ import annotations

from typing import Any

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig

from rs_aligner.model.runtime import Runtime


def with_gradients(
    model: GPTModel, config: TransformerConfig, runtime: Runtime, *, distributed: bool, overlap: bool
) -> DistributedDataParallel:
    """The model with a float32 gradient for each weight, its `main_grad`.

    Args:
        model: this rank's part of the model.
        config: its Megatron config, which learns how gradients are finished.
        runtime: of this rank.
        distributed: whether the optimizer's state is shared out over replicas.
        overlap: whether gradients travel during the backward pass.
    """
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed,
        overlap_grad_reduce=overlap and runtime.dp_size > 1,
    )
    config.finalize_model_grads_func = _finalize
    ddp = DistributedDataParallel(config, settings, model)
    if settings.overlap_grad_reduce:
        config.no_sync_func = ddp.no_sync  # until the last micro-batch
    for groups, replicas in (
        (ddp.bucket_groups, runtime.dp_size),
        (ddp.expert_parallel_bucket_groups, runtime.dp_size // runtime.ep_size),
    ):
        for group in groups if replicas == 1 else ():
            group.start_grad_sync = group.finish_grad_sync = group.start_param_sync = _nothing
    if runtime.device.type == "cpu":  # no pass over memory to add a weight's gradient to the sum
        for layer in model.modules():
            if hasattr(layer, "gradient_accumulation_fusion"):
                layer.gradient_accumulation_fusion = True
    return ddp


def _finalize(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
    finalize_model_grads(model, None, **kwargs)


def _nothing(*_: Any, **__: Any) -> None:
    """What a single replica does to add up gradients and to share weights; Gloo would copy all of them."""
