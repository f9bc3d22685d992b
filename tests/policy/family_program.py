"""Run on two ranks by `test_family_layouts.py`: models of several families, all weights and adapters.

Usage: `python -m tests.policy.family_program <folder> <model>...`, with models in subfolders. Saves what each
layout gave, by the model's name and its own. A checkpoint of a layout is also loaded in the next one.
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
from rs_aligner.model.adapter_folder import gather_adapters, save_adapters
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import checkpoint
from rs_aligner.policy.batches import Split
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.trainable import Optimization
from rs_aligner.policy.training import Trainer
from tests.drawing import request_of
from tests.policy.layout_program import LAYOUTS, LEARNING_RATE, new_trainer, prompts, rows
from tests.policy.lora_program import gradients, policy_config
from tests.policy.objective_cases import NoText
from tests.ranks import save_result


def run_layout(model: Path, name: str, rt: Runtime, elsewhere: Path | None) -> dict[str, Any]:
    """Every case in this layout; `elsewhere` holds the checkpoint of another."""
    arch, sp = read_architecture(model), name.endswith("sp")
    work = model.with_name(f"{model.name}_{name}")

    def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
        return huggingface.gather_tensors(trainer.ddp.module, arch, rt)

    trainer = new_trainer(model, rt, distributed=False, sequence_parallel=sp)
    loss, _ = trainer.gradients(rows(), split=Split(2))
    grads = huggingface.gather_tensors(trainer.ddp.module, arch, rt, of=lambda p: p.main_grad)
    decoder = new_decoder(trainer.ddp.module, arch, rt, GenerationConfig())
    asked = request_of(prompts(), 1, Controls(greedy=True, max_length=12))
    tokens = {rollout.group: rollout.token_ids for rollout in generate(decoder, NoText(), asked, seed=1)}
    found = {"loss": loss, "grads": grads, "tokens": tokens}

    trainer = new_trainer(model, rt, distributed=True, sequence_parallel=sp)
    trainer.step(rows(), split=Split(2), learning_rate=LEARNING_RATE)
    checkpoint.save(work / "step", trainer, rt, {}, source=model)
    found["saved"] = weights(trainer)
    if elsewhere is not None:
        trainer = new_trainer(model, rt, distributed=True, sequence_parallel=sp)
        checkpoint.load(elsewhere / "step", trainer, rt)
        found["loaded"] = weights(trainer)
    return {**found, **run_adapters(model, work, rt, elsewhere, sp)}


def run_adapters(model: Path, work: Path, rt: Runtime, elsewhere: Path | None, sp: bool) -> dict[str, Any]:
    """Adapters everywhere: as they begin, their gradient, and a checkpoint of another layout."""

    def new() -> MegatronPolicy:
        return MegatronPolicy(
            *(model, policy_config("everywhere", sequence_parallel=sp), rt, NoText()),  # type: ignore[arg-type]  # a stand-in
            optimization=Optimization(lambda step: LEARNING_RATE),
        )

    policy = new()
    save_adapters(work / "adapters", policy.adapters, model)
    config = policy_config("everywhere", sequence_parallel=sp, distributed=False)
    plain = MegatronPolicy(
        *(model, config, rt, NoText()),  # type: ignore[arg-type]  # a stand-in
        optimization=Optimization(lambda step: LEARNING_RATE),
    )
    loss, _ = plain.trainer.gradients(rows(), split=Split(2))
    found: dict[str, Any] = {"adapters": (loss, gradients(plain.adapters))}
    policy.train(rows())
    policy.save(work / "adapter_step", {})
    found["adapters saved"] = gather_adapters(policy.adapters)
    if elsewhere is not None:
        policy = new()
        policy.load(elsewhere / "adapter_step")
        found["adapters loaded"] = gather_adapters(policy.adapters)
    return found


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    previous: str | None = None
    for name, (tp, pp) in LAYOUTS[2].items():
        store = dist.FileStore(str(folder / f"store_{name}"), 2)
        with runtime.start(tp, pp, timeout_minutes=2, store=store) as rt:
            for model in sys.argv[2:]:
                elsewhere = None if previous is None else folder / f"{model}_{previous}"
                found[model, name] = run_layout(folder / model, name, rt, elsewhere)
        previous = name
    save_result(folder, found)


if __name__ == "__main__":
    main()
