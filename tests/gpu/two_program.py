"""Run by `test_two.py` on two ranks: steps, a checkpoint that changes its layout, rollouts, an export.

Usage: `python -m tests.gpu.two_program <folder> <accelerator>`, whose subfolder `model` is the model. Saves a
dict by layout. The layouts of a CPU have many more cases in `tests/policy/layout_program.py`; these are what
NCCL could do otherwise. Both are in one process, so process groups are joined and left twice.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime, ranks_started
from rs_aligner.policy import checkpoint
from rs_aligner.policy.batches import Split
from rs_aligner.policy.training import Trainer
from tests.drawing import request_of
from tests.policy.layout_program import LEARNING_RATE, NoText, new_trainer, prompts, rows
from tests.ranks import save_result

LAYOUTS = {"dp2": 1, "tp2": 2}
"""Tensor-parallel ranks; the replicas are the rest."""


def step(trainer: Trainer) -> float:
    return trainer.step(rows(), split=Split(2), learning_rate=LEARNING_RATE).loss


def run(folder: Path, work: Path, rt: Runtime, elsewhere: Path | None = None) -> dict[str, Any]:
    """What this layout gives; `elsewhere` is a checkpoint that another has saved after its first step."""
    trainer = new_trainer(folder, rt, distributed=True)
    found: dict[str, Any] = {
        "backend": dist.get_backend(),
        "device": str(rt.device),
        "layout": (rt.dp_size, rt.tp_size),
        "losses": [step(trainer)],
    }
    saved = work / "step_000001"
    checkpoint.save(saved, trainer, rt, {"steps": 1}, source=folder)
    found["losses"].append(step(trainer))
    arch = read_architecture(folder)
    found["weights"] = on_host(huggingface.gather_tensors(trainer.ddp.module, arch, rt))
    resumed = new_trainer(folder, rt, distributed=True)
    found["counters"] = checkpoint.load(elsewhere or saved, resumed, rt)
    found["losses resumed"] = [step(resumed)]
    found["weights resumed"] = on_host(huggingface.gather_tensors(resumed.ddp.module, arch, rt))
    decoder = new_decoder(trainer.ddp.module.eval(), arch, rt, GenerationConfig(engine="torch"))
    for name, controls in {
        "greedy": Controls(greedy=True, max_length=12),
        "sampled": Controls(temperature=0.8, top_k=20, max_length=10),
    }.items():
        rollouts = generate(decoder, NoText(), request_of(prompts(), 2, controls), seed=1)
        mine = {(one.group, one.index): (one.token_ids, one.log_probs) for one in rollouts}
        found[name] = {place: one for part in rt.gather(mine) for place, one in part.items()}
    huggingface.save_weights(work / "final", trainer.ddp.module, arch, rt, folder)
    return found


def on_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def main() -> None:
    folder, accelerator = Path(sys.argv[1]), sys.argv[2]
    found: dict[str, Any] = {}
    elsewhere = None
    for name, tp in LAYOUTS.items():
        work = folder / name
        work.mkdir(exist_ok=True)
        store = dist.FileStore(str(work / "store"), ranks_started())
        with runtime.start(tp, accelerator=accelerator, timeout_minutes=2, store=store) as rt:
            found[name] = run(folder / "model", work, rt, elsewhere)
        elsewhere = work / "step_000001"
    save_result(folder, found)


if __name__ == "__main__":
    main()
