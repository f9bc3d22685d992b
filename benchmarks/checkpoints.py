"""What a checkpoint costs: seconds of the loop, and memory beyond what training holds, on two replicas.

A random Llama of 13.7 million parameters in float32 with Megatron's distributed optimizer, on the CPU:

    python -m torch.distributed.run --standalone --nproc-per-node=2 benchmarks/checkpoints.py

Printed is a line a rank: the best of five saves, what the process held more at its peak than before a save,
in bytes a parameter, and seconds of a load with its verification. `gather` is the part of a save that one
in the background would still have to wait for: the optimizer's state put together on the first replica.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from megatron.core.optimizer import OptimizerConfig

from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.policy import checkpoint
from rs_aligner.policy.training import Trainer

SAVES = 5


def memory(key: str) -> int:
    """Bytes that this process holds (`VmRSS`), or held at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def new_trainer(folder: Path, rt: runtime.Runtime) -> Trainer:
    arch = read_architecture(folder)
    config = transformer_config(arch, rt, dtype=torch.float32, sequence_parallel=False)
    model = build_model(arch, config, rt)
    huggingface.load_weights(folder, model, arch, rt)
    adam = OptimizerConfig(optimizer="adam", lr=1e-3, clip_grad=1.0, use_distributed_optimizer=True)
    return Trainer(model, config, rt, adam)


def save_model(folder: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    with runtime.start(accelerator="cpu") as rt:
        shared = [tempfile.mkdtemp() if rt.rank == 0 else ""]
        dist.broadcast_object_list(shared, group=rt.objects)
        folder = Path(shared[0])
        if rt.rank == 0:
            save_model(folder / "model")
        rt.barrier()
        trainer = new_trainer(folder / "model", rt)
        number = sum(parameter.numel() for parameter in trainer.ddp.module.parameters())
        trainer.update(0.0)

        def save() -> None:
            checkpoint.save(folder / "step_000001", trainer, rt, {"steps": 1}, folder / "model")

        save()
        held = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        times = [seconds(save) for _ in range(SAVES)]
        extra = (memory("VmHWM") - held) / number
        with rt.cuda_stand_in():
            gather = min(seconds(lambda: checkpoint._state(trainer, False)) for _ in range(SAVES))
        load = seconds(lambda: checkpoint.load(folder / "step_000001", trainer, rt))
        size = sum(path.stat().st_size for path in (folder / "step_000001").rglob("*"))
        print(
            f"rank {rt.rank}: {number:,} parameters, {size / 1e6:.0f} MB; save {min(times):.2f} s "
            f"({', '.join(f'{one:.2f}' for one in times)}); {extra:.1f} bytes a parameter more at the peak; "
            f"load {load:.2f} s; gather {gather:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
