"""Whether this machine has room for a training: its disk for a checkpoint, its memory for the model.

From the sizes of the model alone, before it is loaded. Left out on purpose: activations and the decoder's
cache, which depend on rows, and quotas and limits that only a write or an allocation meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rs_aligner.config import TrainConfig
from rs_aligner.files import hugging_face_part
from rs_aligner.record.room import check_room, size_text


def check_machine_has_room(config: TrainConfig) -> Iterator[str]:
    """See to it that disk and memory suffice for what is known to be needed.

    Yields:
        A line for each.

    Raises:
        ValueError: one does not; with both numbers and what would work.
    """
    import psutil
    import torch

    from rs_aligner.model.families.registry import read_architecture
    from rs_aligner.model.memory import checkpoint_bytes, training_bytes, uses_bf16

    arch = read_architecture(hugging_face_part(Path(config.pretrained_checkpoint.restore_from_path)))
    accelerator, trainer = config.trainer.accelerator, config.trainer
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    bf16 = uses_bf16(trainer.precision, on_gpu)
    folder, wanted = Path(config.exp_manager.explicit_log_dir), checkpoint_bytes(arch, bf16=bf16)
    try:
        check_room(folder, wanted)
    except OSError as error:
        raise ValueError(
            f"exp_manager.explicit_log_dir={folder}: {error} for one checkpoint; name a folder on another "
            "disk"
        ) from None
    yield f"the disk has room for a checkpoint of about {size_text(wanted)}"
    if on_gpu and not torch.cuda.is_available():
        yield "the memory is not known here: this machine has no GPU"
        return
    needed = training_bytes(arch, config, bf16=bf16, on_gpu=on_gpu)
    if on_gpu:
        where, free = "a GPU", torch.cuda.mem_get_info()[0]
    else:
        where, free = "this machine", psutil.virtual_memory().available
        needed *= trainer.devices
    if needed > free:
        raise ValueError(
            f"trainer.devices={trainer.devices}: weights, gradients and optimizer take {size_text(needed)} "
            f"on {where}, and {size_text(free)} are free: spread the model over more ranks or machines "
            "(model.tensor_model_parallel_size, trainer.num_nodes), or start from a smaller one"
        )
    yield f"the memory: weights, gradients and optimizer take {size_text(needed)} on {where}"
