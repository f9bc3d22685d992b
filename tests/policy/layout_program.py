"""Run on one or two ranks by `test_layouts.py`: losses, gradients, steps, checkpoints and greedy tokens.

The policy's, and those of a reward model on preference pairs; the objective's are in `objective_cases.py`.

Usage: `python -m tests.policy.layout_program <folder> <family>...`; with two ranks, every layout
of two; alone, the one of one. Saves a dict keyed by (family, layout), of what each case gave.
A checkpoint of a layout is also continued in the next one.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig

from rs_aligner.config import GenerationConfig
from rs_aligner.config.recompute import Recompute
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime, ranks_started
from rs_aligner.policy import checkpoint
from rs_aligner.policy.batches import Split
from rs_aligner.policy.pairs import PairTrainer
from rs_aligner.policy.reward_model import config_changes, load_reward_model
from rs_aligner.policy.scoring import SequenceScorer
from rs_aligner.policy.training import Trainer
from rs_aligner.rollout import Group, PreferencePair, Prompt, Rollout, Score, TrainingRow
from rs_aligner.selection import Chain, Progress
from rs_aligner.selection.filters import Function
from rs_aligner.trainers.agreement import check_step
from rs_aligner.trainers.failures import RanksDiffer
from tests.drawing import request_of
from tests.policy.objective_cases import SPLITS, NoText, run_objectives
from tests.ranks import save_result

LAYOUTS = {1: {"one": (1, 1)}, 2: {"dp2": (1, 1), "tp2": (2, 1), "tp2sp": (2, 1), "pp2": (1, 2)}}
WAYS: dict[str, Literal["kernels", "torch"]] = {"on kernels": "kernels", "on torch": "torch"}  # of decoding
RECOMPUTES = {
    "selective": Recompute("selective"),
    "full": Recompute("full"),
    "two by two": Recompute("full", "uniform", 2),
    "a block": Recompute("full", "block", 1),
}
LEARNING_RATE = 1e-2


def rows(count: int = 7, vocabulary: int = 96) -> list[TrainingRow]:
    """Rows of unequal length; seven do not fill micro-batches of 2 or 4 on two ranks."""
    rng = random.Random(5)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(n))

    return [TrainingRow(tokens(rng.randint(1, 9)), tokens(rng.randint(1, 20))) for _ in range(count)]


def prompts() -> list[Prompt]:
    return [
        Prompt(id=str(i), text="", token_ids=row.prompt + row.response[:3], position=i)
        for i, row in enumerate(rows(5))
    ]


def pairs(count: int = 7) -> list[PreferencePair]:
    """Pairs whose answers are of unequal length; seven do not fill micro-batches of 2 or 4 on two ranks."""
    chosen, rejected = rows(2 * count)[:count], rows(2 * count)[count:]
    return [
        PreferencePair(one.prompt + one.response, one.prompt + other.response)
        for one, other in zip(chosen, rejected, strict=True)
    ]


def new_trainer(
    folder: Path,
    rt: Runtime,
    *,
    distributed: bool,
    sequence_parallel: bool = False,
    recompute: Recompute | None = None,
    **how: Any,
) -> Trainer:
    arch = read_architecture(folder)
    config = transformer_config(
        arch, rt, dtype=torch.float32, sequence_parallel=sequence_parallel, recompute=recompute
    )
    model = build_model(arch, config, rt)
    huggingface.load_weights(folder, model, arch, rt)
    return Trainer(model, config, rt, adam(distributed), **how)


def adam(distributed: bool) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam",
        lr=LEARNING_RATE,
        weight_decay=0.01,
        adam_eps=1e-3,
        clip_grad=1.0,
        use_distributed_optimizer=distributed,
    )


def new_pair_trainer(
    folder: Path, rt: Runtime, *, sequence_parallel: bool, distributed: bool = True
) -> tuple[PairTrainer, Architecture]:
    model, arch = load_reward_model(folder, rt, sequence_parallel=sequence_parallel, seed=3)
    return PairTrainer(model, model.config, rt, adam(distributed)), arch


def run_pairs(folder: Path, work: Path, rt: Runtime, elsewhere: Path | None) -> dict[str, Any]:
    """The reward model's cases in this layout."""
    sequence_parallel = work.name.endswith("sp")
    # The distributed optimizer leaves each rank its own part of the gradient only.
    trainer, arch = new_pair_trainer(folder, rt, sequence_parallel=sequence_parallel, distributed=False)
    changes = config_changes(arch, NoText())  # type: ignore[arg-type]  # a stand-in
    found: dict[str, Any] = {}

    def weights(trainer: PairTrainer) -> dict[str, torch.Tensor]:
        return huggingface.gather_tensors(trainer.ddp.module, arch, rt)

    def export(trainer: PairTrainer, name: str) -> None:
        huggingface.save_weights(work / name, trainer.ddp.module, arch, rt, folder, changes)

    export(trainer, "reward_start")
    for size, split in SPLITS.items():
        loss, accuracy = trainer.gradients(pairs(), split=split)
        grads = huggingface.gather_tensors(trainer.ddp.module, arch, rt, of=lambda p: p.main_grad)
        found[f"pairs gradient {size}"] = (loss, grads)
        found[f"pairs accuracy {size}"] = {"accuracy": accuracy}
    trainer, _ = new_pair_trainer(folder, rt, sequence_parallel=sequence_parallel)
    trainer.step(pairs(), split=Split(2), learning_rate=LEARNING_RATE)
    saved = work / "reward_step_1"
    checkpoint.save(saved, trainer, rt, {"steps": 1}, folder, changes)
    trainer.step(pairs(), split=Split(2), learning_rate=LEARNING_RATE)
    found["pairs two steps"] = weights(trainer)
    export(trainer, "reward_final")
    scorer = SequenceScorer(trainer.ddp, rt, 2)
    found["pairs scores"] = dict(enumerate(scorer([pair.chosen for pair in pairs()])))
    for label, start in (("pairs resumed", saved), ("pairs continued", (elsewhere or work) / saved.name)):
        resumed, _ = new_pair_trainer(folder, rt, sequence_parallel=sequence_parallel)
        assert checkpoint.load(start, resumed, rt) == {"steps": 1}
        resumed.step(pairs(), split=Split(2), learning_rate=LEARNING_RATE)
        found[label] = weights(resumed)
    for label, start in (("folder", work / "reward_final"), ("checkpoint", saved)):
        model, _ = load_reward_model(start, rt, sequence_parallel=sequence_parallel, seed=4)
        found[f"pairs scores of the {label}"] = dict(
            enumerate(SequenceScorer(model, rt, 2)([pair.chosen for pair in pairs()]))
        )
    return found


def run_layout(folder: Path, work: Path, rt: Runtime, elsewhere: Path | None) -> dict[str, Any]:
    """Every case in this layout; `elsewhere` holds the checkpoints of another."""
    sequence_parallel = work.name.endswith("sp")
    arch = read_architecture(folder)
    found: dict[str, Any] = {}

    def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
        return huggingface.gather_tensors(trainer.ddp.module, arch, rt)

    trainer = new_trainer(folder, rt, distributed=False, sequence_parallel=sequence_parallel)
    for normalization in ("sequence", "token"):
        for size, split in SPLITS.items():
            loss, _ = trainer.gradients(rows(), split=split, normalization=normalization)
            grads = huggingface.gather_tensors(trainer.ddp.module, arch, rt, of=lambda p: p.main_grad)
            found[f"gradient {normalization} {size}"] = (loss, grads)
    for name, how in {
        **{name: {"recompute": recompute} for name, recompute in RECOMPUTES.items()},
        "overlapped": {"overlap_grad_reduce": True},
    }.items():
        other = new_trainer(folder, rt, distributed=False, sequence_parallel=sequence_parallel, **how)
        loss, _ = other.gradients(rows(), split=Split(2))
        grads = huggingface.gather_tensors(other.ddp.module, arch, rt, of=lambda p: p.main_grad)
        found[f"gradient {name}"] = (loss, grads)

    for way, engine in WAYS.items():
        decoder = new_decoder(trainer.ddp.module, arch, rt, GenerationConfig(engine=engine))

        def draw(num: int, controls: Controls, decoder: Any = decoder, **options: Any) -> list[Rollout]:
            asked = request_of(prompts(), num, controls, **options)
            return list(generate(decoder, NoText(), asked, seed=1))

        greedy = draw(1, Controls(greedy=True, max_length=12))
        found[f"greedy {way}"] = {(r.group, r.index): (r.token_ids, r.log_probs) for r in greedy}
        controls = Controls(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.1, max_length=10)
        sampled = draw(3, controls, wave_size=2)
        found[f"sampled {way}"] = {(r.group, r.index): r.token_ids for r in sampled}
        many = draw(64, Controls(max_length=48))
        found[f"many {way}"] = {(r.group, r.index): r.token_ids for r in many}
    for distributed in (False, True):
        label = "distributed" if distributed else "ordinary"
        trainer = new_trainer(folder, rt, distributed=distributed, sequence_parallel=sequence_parallel)

        def step(trainer: Trainer) -> None:
            trainer.step(rows(), split=Split(2), learning_rate=LEARNING_RATE)

        step(trainer)
        saved = work / f"{label}_step_1"
        checkpoint.save(saved, trainer, rt, {"steps": 1}, source=folder)
        step(trainer)
        found[f"two steps {label}"] = weights(trainer)
        resumed = new_trainer(folder, rt, distributed=distributed, sequence_parallel=sequence_parallel)
        resumed.update(0.5 / resumed.optimizer.config.weight_decay)  # no gradient: weight decay alone
        found[f"decayed {label}"] = weights(resumed)
        resumed = new_trainer(folder, rt, distributed=distributed, sequence_parallel=sequence_parallel)
        assert checkpoint.load(saved, resumed, rt) == {"steps": 1}
        step(resumed)
        found[f"resumed {label}"] = weights(resumed)
        if elsewhere is not None:
            resumed = new_trainer(folder, rt, distributed=distributed, sequence_parallel=sequence_parallel)
            checkpoint.load(elsewhere / saved.name, resumed, rt)
            step(resumed)
            found[f"continued {label}"] = weights(resumed)
    huggingface.save_weights(work / "final", trainer.ddp.module, arch, rt, folder)
    return found


def disagree(rt: Runtime) -> dict[str, str]:
    """What is said of selections by `hash()`, which Python makes another one in each process."""
    groups = [
        Group(
            Prompt(f"p{g}", "", (g,)),
            [Rollout(g, i, (g, i), f"text {g} {i}", "stop") for i in range(4)],
            [Score(float(i)) for i in range(4)],
        )
        for g in range(20)
    ]

    def smallest(prompt: str, texts: list[str], rewards: list[float], metadata: dict[str, Any]) -> list[bool]:
        return [hash(text) == min(map(hash, texts)) for text in texts]  # one of each group

    def even(prompt: str, texts: list[str], rewards: list[float], metadata: dict[str, Any]) -> list[bool]:
        return [hash(text) % 2 == 0 for text in texts]

    def better(prompt: str, texts: list[str], rewards: list[float], metadata: dict[str, Any]) -> list[bool]:
        return [reward > 1 for reward in rewards]

    said = {}
    for function in (smallest, even, better):
        globals()["keep"] = function
        chain = Chain([Function("model.rs.selection.0", f"{__name__}:keep", {})])
        try:
            check_step(rt, 2, groups, chain.select(groups, Progress(2, 9)), {})
            said[function.__name__] = "the same"
        except RanksDiffer as error:
            said[function.__name__] = str(error)
    return said


def main() -> None:
    folder = Path(sys.argv[1])
    found = {}
    for family in sys.argv[2:]:
        previous = folder / f"{family}_one" if ranks_started() == 2 else None
        for name, (tp, pp) in LAYOUTS[ranks_started()].items():
            work = folder / f"{family}_{name}"
            work.mkdir(parents=True, exist_ok=True)
            store = dist.FileStore(str(work / "store"), ranks_started())
            with runtime.start(tp, pp, timeout_minutes=2, store=store) as rt:
                found[family, name] = {
                    **run_layout(folder / family, work, rt, previous),
                    **run_pairs(folder / family, work, rt, previous),
                    **run_objectives(folder / family, work, rt, rows(), prompts()),
                    "selections": disagree(rt),
                }
            previous = work
    save_result(folder, found)


if __name__ == "__main__":
    main()
