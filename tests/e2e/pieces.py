"""Runs that put the pieces of a recipe together, on a tiny model; and a program that makes several of them.

Starting ranks costs over ten seconds each, so `python -m tests.e2e.pieces results folder case:port ...` makes
one run after the other in the same processes. The tests make others by the script, to kill them or to split
the model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.e2e.launch import read_metrics
from tests.ranks import save_result
from tests.tiny import save_tiny_with_tokenizer

HOLD = "hold_when"  # a file that names another; once that is there, the judge answers no more
JUDGES = f"""
import time
from pathlib import Path

hold = Path(__file__).with_name("{HOLD}")

def plain(prompts, responses, metadata):
    while hold.exists() and Path(hold.read_text()).exists():
        time.sleep(0.05)
    return [sum(ord(c) < 128 for c in r) / 8 + len(set(r)) / 100 for r in responses]

def watched(prompts, responses, metadata):
    rewards = plain(prompts, responses, metadata)
    return [reward * (1.4 - reward) for reward in rewards]  # best at 0.7: too much of a good thing
"""
COMMON = [
    "exp_manager.create_tensorboard_logger=false",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.timeout_minutes=2",
    "trainer.rs.max_epochs=9",
    "remote_rm.in_process=true",
    "model.rs.num_rollout_samples=6",
    "model.rs.num_rollouts_per_prompt=4",
    "model.rs.length_params.max_length=8",
    "model.global_batch_size=4",
    "model.micro_batch_size=2",
    "model.optim.lr=3e-3",
    "model.optim.eps=1e-4",  # so that rounding is not made larger where gradients are next to nothing
    "model.optim.sched.name=constant",
    "model.optim.sched.warmup_steps=0",
]
IMPROVE = [
    "trainer.rs.max_steps=20",
    "trainer.rs.val_check_interval=2",
    "trainer.rs.patience=3",
    "exp_manager.checkpoint_callback_params.monitor=validation/watched",
    "model.optim.lr=1e-2",
    "model.rs.pool.improve_steps=3",
    "model.rs.selection=[{name: duplicates}, {name: percentile, start: 0.5, end: 0.75}]",
    "model.rs.objective.kl=0.05",
    "model.rs.objective.anchor.share=0.1",
    "model.rs.num_val_rollouts_per_prompt=8",
    "model.rs.val_sampling_params.use_greedy=false",
]
UNTIL = [
    "trainer.rs.max_steps=3",
    "model.rs.until={accepted: 1, at_least: 0.6, rollouts_a_round: 2, max_rollouts: 10}",
    "model.rs.min_reward=0.4",
]
BANK = ["trainer.rs.max_steps=5", "model.rs.pool.max_staleness=2", "model.rs.top_n_rollouts=2"]
RESTART = [
    "trainer.rs.max_steps=6",
    "model.rs.pool={restart: true, improve_steps: 2, passes: 2}",
    "model.rs.selection=[{name: median}]",
    "model.optim.sched={name: CosineAnnealing, warmup_steps: 2, constant_steps: 0, min_lr: 0.0}",
]
CLIP = [
    "trainer.rs.max_steps=3",
    "model.rs.pool.passes=2",
    "model.rs.selection=[{name: all}]",
    "model.rs.objective.advantage=group",
    "model.rs.objective.clip=0.2",
    "model.rs.objective.clip_high=0.3",
]
CASES = {
    "improve": IMPROVE,
    "best": IMPROVE,
    "until": UNTIL,
    "bank": BANK,
    "bank_again": BANK,
    "restart": RESTART,
    "restart_again": RESTART,
    "clip": CLIP,
}
FIRST_START = {  # of a run that is started twice
    "bank_again": ["trainer.rs.max_steps=3"],
    "restart_again": ["trainer.rs.max_steps=3"],
}


def prepare(folder: Path) -> None:
    """A policy, prompts, supervised rows and judges."""
    save_tiny_with_tokenizer(folder / "policy")
    (folder / "judges.py").write_text(JUDGES)
    for name, number in (("train", 15), ("held_out", 6)):
        rows = [{"text": f"{name} {i}:"} for i in range(number)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    anchors = [{"prompt": f"supervised {i}:", "response": " yes" * (1 + i % 3)} for i in range(5)]
    (folder / "anchors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in anchors))


def overrides(folder: Path, name: str, case: str) -> list[str]:
    """The command line of a run into `folder/name`."""
    files = [
        f"exp_manager.explicit_log_dir={folder / name}",
        f"pretrained_checkpoint.restore_from_path={folder / 'policy'}",
        f"model.data.data_prefix={{train: {folder}/train.jsonl, validation: {folder}/held_out.jsonl}}",
        f"remote_rm.judge.function={folder}/judges.py:plain",
    ]
    if CASES[case] is IMPROVE:
        seen = f"{{function: {folder}/judges.py:watched}}"
        files += [
            f"watched_rm={{in_process: true, judge: {seen}}}",
            f"model.rs.objective.anchor.files={folder}/anchors.jsonl",
        ]
    return [*files, *COMMON, *CASES[case]]


def best_step(run: Path) -> int:
    """The validated step that the monitored figure of `IMPROVE` says is the best, the latest of equals."""
    seen = {
        row["step"]: row["validation/watched"] for row in read_metrics(run) if "validation/watched" in row
    }
    return max(seen, key=lambda step: (seen[step], step))


def make(arguments: list[str]) -> None:
    """One run in this process."""
    from rs_aligner.commands.train_rs import fit
    from rs_aligner.config import TrainRSConfig, load_config
    from tests.config.conftest import compose

    fit(load_config(compose("train_rs", arguments), TrainRSConfig), is_first=os.environ["RANK"] == "0")


def main(folder: Path, cases: list[str]) -> None:
    """Make the runs of some cases, each start with a port of its own where the ranks meet."""
    import torch

    torch.set_num_threads(1)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # it serves one start only
    ranks = int(os.environ["WORLD_SIZE"])
    for one in cases:
        case, *ports = one.split(":")
        name = case if ranks == 1 else f"{case}_on_{ranks}"
        arguments = [*overrides(folder, name, case), f"trainer.devices={ranks}"]
        if case == "best":  # ends where the run without a limit was best
            arguments.append(f"trainer.rs.max_steps={best_step(folder / 'improve')}")
        starts = [arguments] if case not in FIRST_START else [arguments + FIRST_START[case], arguments]
        for start, port in zip(starts, ports, strict=True):
            os.environ["MASTER_PORT"] = port
            make(start)
    save_result(folder / f"on_{ranks}", cases)


if __name__ == "__main__":
    main(Path(sys.argv[2]), sys.argv[3:])
