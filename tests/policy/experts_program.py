"""Run on one, two or four ranks by `test_expert_layouts.py`: mixtures of experts in every layout.

Usage: `python -m tests.policy.experts_program <folder>`, with a model in `<folder>/<family>/model`. Each rank
saves what each layout of so many ranks gave, by the layout's name.
"""

from __future__ import annotations

import os
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from rs_aligner.config import GenerationConfig
from rs_aligner.config.recompute import Recompute
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.lockstep import go_along
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.adapter_folder import save_adapters
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import checkpoint
from rs_aligner.policy.batches import Split
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.trainable import Optimization
from rs_aligner.policy.training import Trainer
from tests.drawing import request_of
from tests.policy.layout_program import LEARNING_RATE, new_trainer, prompts, rows
from tests.policy.lora_program import gradients as of_adapters
from tests.policy.lora_program import policy_config, run_steps
from tests.policy.objective_cases import NoText
from tests.ranks import fork_ranks

FAMILY, DENSE = "mixtral", "qwen3 moe dense"


class Layout(NamedTuple):
    """Ranks that share a layer, layers, and a layer's experts; whether they split the sequence; of what."""

    tensor: int = 1
    pipeline: int = 1
    experts: int = 1
    in_parts: bool = False
    family: str = FAMILY


LAYOUTS: dict[int, dict[str, Layout]] = {
    1: {"one": Layout(), "dense one": Layout(family=DENSE)},
    2: {
        "dp2": Layout(),
        "ep2": Layout(experts=2),
        "tp2": Layout(tensor=2),
        "tp2sp": Layout(tensor=2, in_parts=True),
        "pp2": Layout(pipeline=2),
    },
    4: {
        "ep4": Layout(experts=4),
        "dp2 x ep2": Layout(experts=2),
        "tp2 x ep2": Layout(tensor=2, experts=2),
        "tp2sp x ep2": Layout(tensor=2, experts=2, in_parts=True),
        "pp2 x ep2": Layout(pipeline=2, experts=2),
        "dense pp2 x ep2": Layout(pipeline=2, experts=2, family=DENSE),  # a stage without experts
        "dense tp2sp x ep2": Layout(tensor=2, experts=2, in_parts=True, family=DENSE),
    },
}
"""By the number of ranks; those that no dimension takes are replicas."""
ONES = {layout.family: name for name, layout in LAYOUTS[1].items()}
"""By family: the layout of one rank."""
ADAPTED = ("one", "ep2", "tp2sp x ep2", "dense one", "dense pp2 x ep2")
"""The layouts in which adapters are trained."""
SPLITS = {"one by one": Split(1), "two": Split(2), "by tokens": Split(1, 40)}


def run_layout(
    model: Path, work: Path, layout: Layout, rt: Runtime, elsewhere: Path | None
) -> dict[str, Any]:
    """Every case in this layout; `elsewhere` has a checkpoint of another."""
    arch = read_architecture(model)
    new = partial(new_trainer, model, rt, sequence_parallel=layout.in_parts)
    found: dict[str, Any] = {}

    def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
        return huggingface.gather_tensors(trainer.ddp.module, arch, rt)

    def gradients(trainer: Trainer, split: Split) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
        loss, figures = trainer.gradients(rows(), split=split)
        grads = huggingface.gather_tensors(trainer.ddp.module, arch, rt, of=lambda p: p.main_grad)
        return loss, grads, figures

    trainer = new(distributed=False)
    for name, split in SPLITS.items():
        found[f"gradient {name}"] = gradients(trainer, split)
    for name, how in {
        "full": {"recompute": Recompute("full")},
        "selective": {"recompute": Recompute("selective")},
        "overlapped": {"overlap_grad_reduce": True},
    }.items():
        found[f"gradient {name}"] = gradients(new(distributed=False, **how), Split(2))

    for name, split in SPLITS.items():
        how = {"recompute": Recompute("full")} if name == "two" else {}
        other = new_trainer(
            model.with_name("balanced"), rt, distributed=False, sequence_parallel=layout.in_parts, **how
        )
        found[f"balanced {name}"] = gradients(other, split)

    decoder = new_decoder(trainer.ddp.module, arch, rt, GenerationConfig())
    share = slice(rt.dp_rank, None, rt.dp_size)
    for name, controls in {
        "greedy": Controls(greedy=True, max_length=6),
        "sampled": Controls(max_length=5),
    }.items():
        asked = request_of(prompts(), 1 if name == "greedy" else 2, controls, wave_size=2)
        drawn = list(generate(decoder, NoText(), asked, seed=1, share=share))
        go_along(trainer.ddp.module, rt)
        found[name] = {(rollout.group, rollout.index): rollout.token_ids for rollout in drawn}

    trainer = new(distributed=False)
    found["norm ordinary"] = trainer.step(rows(), split=Split(2), learning_rate=LEARNING_RATE).grad_norm
    found["one step ordinary"] = weights(trainer)
    trainer = new(distributed=True)
    found["norm distributed"] = trainer.step(rows(), split=Split(2), learning_rate=LEARNING_RATE).grad_norm
    found["one step distributed"] = weights(trainer)
    checkpoint.save(work / "step_1", trainer, rt, {"steps": 1}, source=model)
    trainer.step(rows(), split=Split(2), learning_rate=LEARNING_RATE)
    found["two steps"] = weights(trainer)
    for name, start in (("resumed", work), ("continued", elsewhere or work)):
        other = new(distributed=True)
        assert checkpoint.load(start / "step_1", other, rt) == {"steps": 1}
        other.step(rows(), split=Split(2), learning_rate=LEARNING_RATE)
        found[name] = weights(other)
    huggingface.save_weights(work / "final", trainer.ddp.module, arch, rt, model)
    if work.name in ADAPTED:
        found |= run_adapters(model, work / "adapters", layout, rt)
    return found


def run_adapters(model: Path, work: Path, layout: Layout, rt: Runtime) -> dict[str, Any]:
    """Adapters of the attention beside experts: their gradient, steps, and going on, also from one rank's."""

    def new_policy(*, distributed: bool = True) -> MegatronPolicy:
        return MegatronPolicy(
            model,
            policy_config("everywhere", sequence_parallel=layout.in_parts, distributed=distributed),
            rt,
            NoText(),  # type: ignore[arg-type]  # a stand-in
            optimization=Optimization(lambda step: 1e-2 / (step + 1), "fp32"),
            keep_start=True,
        )

    policy = new_policy(distributed=False)
    save_adapters(work / "start", policy.adapters, model)
    loss, _ = policy.trainer.gradients(rows(), split=Split(2))
    grads = of_adapters(policy.adapters)
    norm = policy.trainer.update(1e-9)
    one = work.parents[1] / ONES[layout.family] / "adapters"
    steps = run_steps(new_policy, work, one if one != work else None)
    return {"adapters": {"gradient": (loss, grads), "norm": norm, **steps}}


def run_rank(folder: Path, number: int) -> None:
    """All layouts of so many ranks on this one."""
    found = {}
    previous = {family: folder / name for family, name in ONES.items()} if number > 1 else {}
    for name, layout in LAYOUTS[number].items():
        work = folder / name
        work.mkdir(parents=True, exist_ok=True)
        store = dist.FileStore(str(work / "store"), number)
        with runtime.start(*layout[:3], timeout_minutes=5, store=store) as rt:
            model = folder / layout.family / "model"
            found[name] = run_layout(model, work, layout, rt, previous.get(layout.family))
        previous[layout.family] = work
    (folder / f"{number}_{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(found))


def main() -> None:
    for number in LAYOUTS:
        fork_ranks(number, partial(run_rank, Path(sys.argv[1]), number), timeout=1000)


if __name__ == "__main__":
    main()
