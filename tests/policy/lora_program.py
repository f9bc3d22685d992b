"""Run by `test_lora.py`: adapters on one, two and four ranks, in every layout.

Usage: `python -m tests.policy.lora_program <folder>`, whose subfolder `model` is the model. The ranks are
forks of this process, so what they import is imported once. Saves a dict by layout, of what each case gave; a
checkpoint of a layout is also continued in the next one.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rs_aligner.config import LengthParams, PolicyModelBase, SamplingParams
from rs_aligner.model import runtime
from rs_aligner.model.adapter_folder import gather_adapters, save_adapters
from rs_aligner.model.lora import Adapters, attach
from rs_aligner.model.lora_wanted import spec_of
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.batches import Split
from rs_aligner.policy.pairs import PairTrainer
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reference import response_log_probs
from rs_aligner.policy.reward_model import load_reward_model
from rs_aligner.policy.trainable import Optimization
from rs_aligner.sample_request import SampleRequest
from tests.policy.layout_program import adam, pairs, prompts, rows
from tests.policy.objective_cases import NoText
from tests.ranks import fork_ranks

LAYOUTS = {
    "one": (1, 1, 1),
    "pp2": (2, 1, 2),
    "tp2sp": (2, 2, 1),
    "tp2pp2": (4, 2, 2),
    "tp2dp2sp": (4, 2, 1),
}
"""By name: ranks, tensor- and pipeline-parallel size."""

ADAPTERS = {
    "everywhere": {"adapter_dim": 4, "alpha": 6, "row_init_method": "normal"},
    "some": {
        "adapter_dim": 3,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj", "up_proj", "mlp_fc2"],
        "row_init_method": "normal",
        "column_init_method": "kaiming",
    },
    "one matrix": {"adapter_dim": 2, "target_modules": ["q_proj"], "row_init_method": "normal"},
}
KINDS: dict[str, dict[str, Any]] = {
    "distributed": {},
    "ordinary": {"distributed": False},
    "bf16": {"precision": "bf16"},
}
ALL_KINDS = ("one", "tp2dp2sp")
"""The layouts in which all kinds of optimizers are tried; elsewhere it is the first of them."""


def policy_config(
    name: str, *, sequence_parallel: bool, distributed: bool = True, again: str | None = None
) -> PolicyModelBase:
    tree = {
        "micro_batch_size": 2,
        "global_batch_size": 7,
        "sequence_parallel": sequence_parallel,
        "peft": {"peft_scheme": "lora", "lora_tuning": ADAPTERS[name]},
        "activations_checkpoint_granularity": again,
        "optim": {
            "name": "distributed_fused_adam" if distributed else "adam",
            "eps": 1e-3,
            "weight_decay": 0.01,
        },
        "data": {"data_prefix": {"train": "unused"}},
    }
    return PolicyModelBase.model_validate(tree)


def base_checksum(policy: MegatronPolicy) -> str:
    """Of all weights that are not trained, to the last bit."""
    found = hashlib.sha256()
    for parameter in policy.model.parameters():
        if not parameter.requires_grad:
            found.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def run_layout(name: str, folder: Path, work: Path, rt: Runtime, elsewhere: Path | None) -> dict[str, Any]:
    """Every case in this layout; `elsewhere` has the checkpoint of another one."""
    sp, found = name.endswith("sp"), {}

    def new_policy(adapters: str, precision: str = "fp32", **settings: Any) -> MegatronPolicy:
        return MegatronPolicy(
            folder,
            policy_config(adapters, sequence_parallel=sp, **settings),
            rt,
            NoText(),  # type: ignore[arg-type]  # a stand-in
            optimization=Optimization(lambda step: 1e-2 / (step + 1), precision),
            keep_start=True,
        )

    for adapters in ("everywhere", "some"):
        policy = new_policy(adapters, distributed=False)
        save_adapters(work / adapters, policy.adapters, folder)
        loss, _ = policy.trainer.gradients(rows(), split=Split(4))
        found[f"gradient {adapters}"] = (loss, gradients(policy.adapters))
        found[f"norm {adapters}"] = policy.trainer.update(1e-9)
    found["greedy"] = greedy(policy)
    policy = new_policy("everywhere", distributed=False, again="full")
    loss, _ = policy.trainer.gradients(rows(), split=Split(4))
    found["gradient recomputed"] = (loss, gradients(policy.adapters))
    for kind, settings in KINDS.items() if name in ALL_KINDS else [("distributed", KINDS["distributed"])]:
        new = partial(new_policy, "everywhere", **settings)
        there = None if elsewhere is None else elsewhere / kind
        steps = run_steps(new, work / kind, there)
        found |= {f"{case} {kind}": value for case, value in steps.items()}
    found |= run_pairs(folder, rt, sp)
    if name == "one":
        found["base after many merges"] = merge_often(new_policy("one matrix", precision="bf16"))
    return found


def gradients(adapters: Adapters) -> dict[str, torch.Tensor]:
    """The gradients of all adapters, whole, by the names of `peft`."""
    kept = {name: parameter.data for name, parameter, _ in adapters.parameters()}
    for _, parameter, _ in adapters.parameters():
        parameter.data = parameter.main_grad
    found = gather_adapters(adapters)
    for name, parameter, _ in adapters.parameters():
        parameter.data = kept[name]
    return found


def greedy(policy: MegatronPolicy) -> dict[tuple[int, int], tuple[Any, Any]]:
    request = SampleRequest(prompts(), 1, SamplingParams(use_greedy=True), LengthParams(max_length=8))
    mine = {(r.group, r.index): (r.token_ids, r.log_probs) for r in policy.generate(request)}
    assert policy.adapters is not None
    assert policy.adapters.is_merged
    return {key: value for replica in policy.gather(mine) for key, value in replica.items()}


def run_steps(new: Any, work: Path, elsewhere: Path | None) -> dict[str, Any]:
    """Steps, a checkpoint, going on from it, the start and a restart, of one kind of optimizer."""
    policy: MegatronPolicy = new()
    base, start = base_checksum(policy), gather_adapters(policy.adapters)
    reference = policy.reference_log_probs(rows())
    greedy(policy)
    policy.train(rows())
    policy.save(work / "one_step", {"steps": 1})
    trained = response_log_probs(policy.trainer, rows(), Split(2))
    found: dict[str, Any] = {
        "reference": reference == policy.reference_log_probs(rows()) and reference != trained,
        "trained again": trained == response_log_probs(policy.trainer, rows(), Split(2)),
    }
    greedy(policy)
    policy.train(rows())
    found["two steps"] = gather_adapters(policy.adapters)
    found["base"] = base == base_checksum(policy)
    found["optimizer bytes"] = optimizer_bytes(policy)
    resumed: MegatronPolicy = new()
    assert resumed.load(work / "one_step") == {"steps": 1}
    resumed.train(rows())
    found["resumed"] = gather_adapters(resumed.adapters)
    policy.restart()
    found["restarted"] = all(torch.equal(start[k], v) for k, v in gather_adapters(policy.adapters).items())
    policy.train(rows())
    policy.train(rows())
    found["two steps again"] = gather_adapters(policy.adapters)
    if elsewhere is not None and (elsewhere / "one_step").is_dir():
        continued: MegatronPolicy = new()
        continued.load(elsewhere / "one_step")
        continued.train(rows())
        found["continued"] = gather_adapters(continued.adapters)
    return found


def optimizer_bytes(policy: MegatronPolicy) -> tuple[int, int]:
    """What the optimizer holds on this rank, and DDP's buffers of gradients; and parameters trained here."""
    parts = getattr(policy.trainer.optimizer, "chained_optimizers", [policy.trainer.optimizer])
    states = [
        tensor
        for part in parts
        for state in part.optimizer.state.values()
        for tensor in state.values()
        if torch.is_tensor(tensor) and tensor.dim()
    ]
    return sum(tensor.nbytes for tensor in states), sum(
        b.grad_data.nbytes for b in policy.trainer.ddp.buffers
    )


def run_pairs(folder: Path, rt: Runtime, sp: bool) -> dict[str, Any]:
    """A reward model with adapters: its head is trained whole."""
    model, arch = load_reward_model(folder, rt, sequence_parallel=sp, seed=3)
    config = policy_config("everywhere", sequence_parallel=sp)
    spec = spec_of(config.peft, arch)
    assert spec is not None
    adapters = attach(model, arch, rt, spec, seed=1234)
    trainer = PairTrainer(model, model.config, rt, adam(False))
    loss, _ = trainer.gradients(pairs(), split=Split(2))
    return {"pairs gradient": (loss, gradients(adapters))}


def merge_often(policy: MegatronPolicy) -> bool:
    """Whether the base is what it was, to the last bit, behind 1,000 times in and out, and steps between."""
    base, adapters = base_checksum(policy), policy.adapters
    assert adapters is not None
    moved = set()
    for turn in range(1000):
        if turn % 100 == 0:
            policy.train(rows())
        adapters.merge()
        if turn % 250 == 0:
            moved.add(base_checksum(policy))
        adapters.restore()
    assert len(moved) == 4, "the merged weights are other ones each time"
    assert base not in moved
    return base == base_checksum(policy)


def rank_main(name: str, folder: Path, previous: Path | None) -> None:
    ranks, tp, pp = LAYOUTS[name]
    torch.set_num_threads(1)
    work = folder / name
    work.mkdir(exist_ok=True)
    store = dist.FileStore(str(work / "store"), ranks)
    with runtime.start(tp, pp, accelerator="cpu", timeout_minutes=2, store=store) as rt:
        found = run_layout(name, folder / "model", work, rt, previous)
    if rt.rank == 0:
        (folder / f"{name}.pickle").write_bytes(pickle.dumps(found))


def main() -> None:
    folder, previous = Path(sys.argv[1]), None
    for name, (ranks, _, _) in LAYOUTS.items():
        fork_ranks(ranks, partial(rank_main, name, folder, previous))
        previous = folder / name


if __name__ == "__main__":
    main()
