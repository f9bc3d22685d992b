"""Run on two ranks by `test_memory.py`: how many bytes a save, an export and a step take.

Usage: `python -m tests.policy.memory_program <folder>`; saves a dict by layout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rs_aligner.model import huggingface, runtime
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime, ranks_started
from rs_aligner.policy import checkpoint
from rs_aligner.policy.batches import Split
from rs_aligner.policy.offload import NOTHING, Offloading
from tests.allocations import counted
from tests.policy.layout_program import LEARNING_RATE, new_trainer, rows
from tests.policy.offloaded import life, same, taken_to_be_apart
from tests.policy.planned import RECOMPUTES, beside_the_plan
from tests.ranks import save_result

LAYOUTS = {"dp2": (1, 1, 1), "tp2": (2, 1, 1), "ep2": (1, 1, 2)}


def measured(folder: Path, work: Path, rt: Runtime) -> dict[str, Any]:
    trainer = new_trainer(folder, rt, distributed=True)
    trainer.step(rows(), split=Split(2), learning_rate=LEARNING_RATE)
    model, arch = trainer.ddp.module, read_architecture(folder)
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with torch.no_grad():
        loaded = counted(lambda: huggingface.load_weights(folder, model, arch, rt))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "largest": max(parameter.nbytes for parameter in model.parameters()),
        "save": counted(lambda: checkpoint.save(work / "step_000001", trainer, rt, {}, folder)).most,
        "export": counted(lambda: huggingface.save_weights(work / "final", model, arch, rt, folder)).most,
        "load": loaded.most - files,  # the file is mapped, and not in memory of its own
    }


def offloaded(folder: Path, work: Path, rt: Runtime) -> list[str]:
    """What of adapters' life is another one if optimizer states wait in the CPU's memory."""
    kind = {"precision": "bf16", "peft": {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 4}}}
    plain = life(folder, work / "plain", rt, NOTHING, **kind)
    with pytest.MonkeyPatch.context() as patch:
        taken_to_be_apart(patch)
        found = life(folder, work / "offloaded", rt, Offloading(True, 0.5), **kind)
    return [case for case, value in plain.items() if not same(value, found[case])]


def main() -> None:
    folder = Path(sys.argv[1])
    found = {}
    for name, layout in LAYOUTS.items():
        work = folder / name
        work.mkdir(exist_ok=True)
        store = dist.FileStore(str(work / "store"), ranks_started())
        with runtime.start(*layout, timeout_minutes=2, store=store) as rt:
            if rt.ep_size > 1:
                found[name] = beside_the_plan(folder / "mixture", rt, expert_model_parallel_size=rt.ep_size)
                continue
            found[name] = measured(folder / "model", work, rt)
            planned = {way: beside_the_plan(folder / "model", rt, **how) for way, how in RECOMPUTES.items()}
            found[name]["planned"] = planned
            if name == "dp2":
                found[name]["offloaded"] = offloaded(folder / "model", work, rt)
    save_result(folder, found)


if __name__ == "__main__":
    main()
