"""What this machine has for a training: its disk for a checkpoint, its memory for the model and its steps.

Before the model is loaded. Left out on purpose: how much is needed (`model/memory.py`, `fitting.py`), quotas,
and limits that only a write or an allocation meets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rs_aligner.commands.fitting import Fit, Room
from rs_aligner.config import GenerateConfig, TrainConfig, TrainRSConfig
from rs_aligner.config.plan_parts import Line, in_gib
from rs_aligner.files import hugging_face_part
from rs_aligner.model.activations import Lengths
from rs_aligner.model.memory import checkpoint_bytes, uses_bf16
from rs_aligner.model.tensors import num_parameters
from rs_aligner.record.room import check_room, memory_limit, size_text
from rs_aligner.rollout import PreferencePair, TrainingRow

if TYPE_CHECKING:
    from rs_aligner.model.architecture import Architecture
    from rs_aligner.trainers.rs import RSData


def is_on_gpu(config: TrainConfig | GenerateConfig) -> bool:
    """Whether a command works on a GPU."""
    import torch

    accelerator = config.trainer.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def room_of(config: TrainConfig) -> Room | None:
    """The memory that there is for a rank; None where this machine cannot tell, which has no GPU itself."""
    share = memory_limit() // config.trainer.devices
    if is_on_gpu(config):
        total = gpu_memory()
        return None if total is None else Room("a GPU", total, True, beside=share)
    return Room("its share of this machine", share, False)


def gpu_memory() -> int | None:
    """Bytes of a GPU in all; None without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _architecture(config: TrainConfig | GenerateConfig) -> Architecture:
    """The model's, with the rows that its embedding gets."""
    from rs_aligner.model.families.registry import read_architecture
    from rs_aligner.model.new_rows import enlarged
    from rs_aligner.model.tokenizer import Tokenizer

    source = hugging_face_part(Path(config.pretrained_checkpoint.restore_from_path))
    arch = read_architecture(source)
    if config.pretrained_checkpoint.resize_token_embeddings:
        return enlarged(arch, Tokenizer(source).num_ids)
    return arch


def _fit(config: TrainConfig, lengths: Lengths) -> Fit:
    return Fit(_architecture(config), config, lengths, room_of(config), on_gpu=is_on_gpu(config))


def fit_of_rs(config: TrainRSConfig, data: RSData, positions: int) -> Fit:
    """Of rejection sampling with its data.

    Args:
        config: a checked config.
        data: as read.
        positions: of the model.
    """
    from rs_aligner.data.stored import spans_of

    most = config.model.sequence_length(positions)
    prompts, bounds = spans_of(data.prompts), config.model.rs.length_params
    asked = [found.longest for found in (prompts, spans_of(data.validation)) if found is not None]
    longest = [min(most, prompts.longest + bounds.max_length)] if prompts else []
    learnt = [bounds.max_length] if prompts else []
    shortest = [prompts.shortest + bounds.min_length] if prompts else []
    for group in data.scored:
        rows = [len(rollout.token_ids) for rollout in group.rollouts] or [0]
        longest.append(len(group.prompt.token_ids) + max(rows))
        shortest.append(len(group.prompt.token_ids) + min(rows))
        learnt.append(max(rows))
    for row in data.anchors:
        longest.append(len(row))
        learnt.append(len(row.response))
    number = min(len(data.prompts) or len(data.validation), config.model.rs.num_rollout_samples)
    if not config.samples:
        asked, number = [], 0
    return _fit(
        config,
        Lengths(max(longest), min(shortest), max(learnt), number if asked else 0, max(asked, default=0)),
    )


def fit_of_rows(config: TrainConfig, rows: Sequence[TrainingRow] | Sequence[PreferencePair]) -> Fit:
    """Of a training that passes over rows, or pairs."""
    from rs_aligner.data.stored import spans_of

    spans = spans_of(rows)
    assert spans is not None  # a training has rows
    return _fit(config, Lengths(spans.longest, spans.shortest, spans.learnt))


def decoding_lines(config: GenerateConfig, num_prompts: int, longest_prompt: int) -> Iterator[Line]:
    """Which engine answers so many prompts, and what it holds.

    Raises:
        ValueError: no engine can decode the model, or not the one that was asked for.
    """
    from rs_aligner.commands.decoding import Decoding
    from rs_aligner.generation.decoder import Ahead
    from rs_aligner.model.wave import wave_of

    arch, on_gpu = _architecture(config), is_on_gpu(config)
    generation = config.model.answers.generation
    ahead = Ahead(arch, on_gpu, uses_bf16(config.trainer.precision, on_gpu))
    decoding = Decoding.of(generation, "model.answers.generation", ahead)
    wave = wave_of(config, num_prompts, longest_prompt)
    yield decoding.line()
    if decoding.cached:
        most = wave.cache_bytes(arch, decoding.cached) // config.model.model_parallel_size
        yield "  sampling", f"cache up to {in_gib(min(most, generation.kv_cache_bytes or most))} on each rank"
    yield from decoding.server_lines(wave, gpu_memory() if on_gpu else None, trains=False)


_FOLDERS = 3  # of weights for servers, while the third is written


def check_disk(config: TrainConfig) -> str:
    """See to it that the disk has room for a checkpoint, and for the weights that servers get.

    Returns:
        A line that says so.

    Raises:
        ValueError: it has not; with both numbers and what would work.
    """
    arch = _architecture(config)
    folder = Path(config.exp_manager.explicit_log_dir)
    bf16 = uses_bf16(config.trainer.precision, is_on_gpu(config))
    wanted, what = checkpoint_bytes(arch, bf16=bf16), "one checkpoint"
    if isinstance(config, TrainRSConfig) and config.model.rs.generation.is_served:
        wanted += _FOLDERS * num_parameters(arch) * (2 if bf16 else 4)
        what += " and the weights that servers get"
    try:
        check_room(folder, wanted)
    except OSError as error:
        raise ValueError(
            f"exp_manager.explicit_log_dir={folder}: {error} for {what}; name a folder on another disk"
        ) from None
    return f"the disk has room for {what}, about {size_text(wanted)}"
