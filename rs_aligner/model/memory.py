"""How much memory a rank will need, before there is a model: weights, optimizer, and the decoder's cache."""

from __future__ import annotations

from rs_aligner.config import TrainConfig, TrainRSConfig
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.tensors import num_parameters
from rs_aligner.objective.terms import compares_logits

ADAM_BYTES = 8  # two running means in float32
GRADIENT_BYTES = 4  # gradients are accumulated in float32


def uses_bf16(precision: str, on_gpu: bool) -> bool:
    """What `trainer.precision` means: `auto` is bf16 on a GPU."""
    return precision == "bf16" or (precision == "auto" and on_gpu)


def checkpoint_bytes(arch: Architecture, *, bf16: bool) -> int:
    """Weights and optimizer state of the whole model, as a checkpoint has them."""
    return num_parameters(arch) * ((2 + 4 if bf16 else 4) + ADAM_BYTES)


def training_bytes(arch: Architecture, config: TrainConfig, *, bf16: bool, on_gpu: bool) -> int:
    """Weights, gradients and optimizer state of one rank, on the device that trains.

    A copy of the starting weights is there too, unless it is not needed or waits in the memory beside a GPU.
    """
    optimizer = ADAM_BYTES + (4 if bf16 else 0)  # bf16 weights have a float32 twin in the optimizer
    if config.model.optim.distributed:
        optimizer = -(-optimizer // config.data_parallel_size)
    weights = 2 if bf16 else 4
    start = 0
    if isinstance(config, TrainRSConfig):
        rs = config.model.rs
        is_elsewhere = on_gpu and rs.objective.offload_reference
        needs_start = rs.needs_start or compares_logits(rs.objective)
        start = weights if needs_start and not is_elsewhere else 0
    each = weights + start + GRADIENT_BYTES + optimizer
    return num_parameters(arch) * each // config.model_parallel_size


def cache_bytes(
    arch: Architecture, config: TrainRSConfig, num_prompts: int, longest_prompt: int, *, element: int
) -> int:
    """Most bytes that the cache of a wave of `num_prompts` prompts takes on one rank, if it has no budget.

    A prompt is kept once; what rounding up to pages adds is left out. A number takes `element` bytes.
    """
    rs = config.model.rs
    wave = min(-(-num_prompts // config.data_parallel_size), rs.rollout_micro_batch_size or num_prompts)
    tokens = wave * (longest_prompt + rs.num_rollouts_per_prompt * rs.length_params.max_length)
    return tokens * arch.cache_bytes_per_token(element) // config.model_parallel_size


def memory_plan(
    arch: Architecture, config: TrainRSConfig, num_prompts: int, longest_prompt: int, *, on_gpu: bool
) -> str:
    """A line for the printed plan."""
    bf16 = uses_bf16(config.trainer.precision, on_gpu)
    training = training_bytes(arch, config, bf16=bf16, on_gpu=on_gpu)
    element = 2 if bf16 and on_gpu else 4  # the kernels for a CPU keep float32
    cache = cache_bytes(arch, config, num_prompts, longest_prompt, element=element)
    budget = config.model.rs.generation.kv_cache_bytes
    shown = f"up to {_gib(cache)}"
    if budget is not None and budget < cache:
        shown = f"kept within {_gib(budget)} (all at once would take up to {_gib(cache)})"
    return (
        f"memory                  of a rank, beside activations: weights and optimizer {_gib(training)}, "
        f"cache {shown}; {num_parameters(arch):,} parameters"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
