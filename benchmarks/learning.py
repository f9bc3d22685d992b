"""Does it learn, at what price, and against whom: recipes of this project, a random control, and TRL's GRPO.

    python benchmarks/learning.py stories --out runs/learning --trl /tmp/trl/bin/python
    python benchmarks/learning.py arithmetic --out runs/arithmetic
    python benchmarks/learning.py stories --only plain,anchor --seeds 1 --out runs/look     a look

`stories`: a small real model learns to end its stories happily, by the sentiment judge, which runs in the
same process in both systems. `--trl` names the Python of an environment with TRL (see `trl_grpo.py`), whose
GRPO then runs between our recipes, seed by seed, so that the machine's moods meet all alike. One thread each.
After each step in `save_at` the weights are written down, with the CPU seconds (user and system, of the
process and its children, from the first step on, without what writing took) and the response tokens generated
until then. Then `measuring.py` measures held-out score and drift of all of them in the same way.

`arithmetic`: the quickstart's task with its exact judge, from the warm start (a third right) on; what counts
is the share of 1,000 held-out additions that are solved greedily, and the CPU seconds until then.

Each run is a process of its own. Settings, load and figures (means with standard errors) go to `--results`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", "../shared/data")).resolve()
RESULTS = ROOT / "benchmarks" / "results"
LEVELS = (0.6, 0.7, 0.8, 0.85, 0.9)

# Recipes: overrides of the base config below, and the steps after which the weights are written down.
GROUP_ADVANTAGE = {"model.rs.selection": [{"name": "all"}], "model.rs.objective.advantage": "group"}
AT_RANDOM = [{"name": "function", "function": f"{Path(__file__).resolve()}:at_random"}]


def lora(rank: int, lr: float) -> dict[str, Any]:
    """Adapters on all linear layers instead of all weights, at about ten times the rate."""
    return {
        "model.peft.peft_scheme": "lora",
        "model.peft.lora_tuning.adapter_dim": rank,
        "model.optim.lr": lr,
    }


def advantage(prompts: int, lr: float) -> dict[str, Any]:
    """One update on all rollouts of a few prompts, as TRL's GRPO does it by default."""
    return {
        **GROUP_ADVANTAGE,
        "model.rs.num_rollout_samples": prompts,
        "model.global_batch_size": 8 * prompts,
        "model.micro_batch_size": 8 * prompts,
        "model.optim.lr": lr,
        "model.optim.betas": [0.9, 0.999],
        "model.loss_normalization": "token",
    }


STORIES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "plain": ({}, [1, 2, 3]),
    "lora_8": (lora(8, 3e-3), [1, 2, 3]),
    "random": ({"model.rs.selection": AT_RANDOM}, [1, 2, 3]),
    "anchor": (
        {
            "model.rs.objective.anchor": {"files": ["ANCHORS"], "share": 0.1, "weight": 3.0},
            "model.optim.lr": 2.5e-4,
            "model.max_tokens_per_microbatch": 2048,  # anchors are long: rows share lines, about equally full
        },
        [2, 3, 5, 6],
    ),
    "kl": ({"model.rs.objective.kl": 0.1, "model.optim.lr": 1.5e-4}, [2, 3, 5, 6]),
    "percentile": (
        {
            "model.rs.rft": {"n_generations_per_prompt": 32, "n_improve_steps": 4},
            "model.rs.num_rollout_samples": 32,
            "model.optim.lr": 1.5e-4,
            "model.global_batch_size": 32,
        },
        [4, 6, 8],
    ),
    "advantage_gentle": (advantage(32, 3e-4), [3, 4, 5]),
    "advantage_fast": (advantage(8, 5e-4), [3, 4, 5, 6]),
    # Plain rejection sampling in a hurry: steps of fewer prompts, higher rates.
    "plain_fast": ({"model.rs.num_rollout_samples": 32, "model.optim.lr": 5e-4}, [1, 2, 3, 4]),
    "plain_hasty": (
        {
            "model.rs.num_rollout_samples": 16,
            "model.micro_batch_size": 8,
            "model.global_batch_size": 8,
            "model.optim.lr": 1e-3,
        },
        [1, 2, 3, 4],
    ),
}
# Prompts of a step, learning rate, and the steps that are kept; results/README.md has how they were found.
TRL = {
    "gentle": (32, 3e-4, [3, 4, 5, 6]),
    "fast": (8, 5e-4, [3, 4, 5, 6]),
    "hasty": (4, 1e-3, [3, 4, 5, 6]),
}
ARITHMETIC: dict[str, dict[str, Any]] = {
    "quickstart": {"trainer.rs.max_steps": 62},
    "lora_8": {**lora(8, 5e-3), "trainer.rs.max_steps": 62},
    "advantage": {
        **GROUP_ADVANTAGE,
        "model.rs.objective.clip": 0.2,
        "model.rs.min_reward": None,
        "model.global_batch_size": 128,
        "model.optim.lr": 3e-4,
        "trainer.rs.max_steps": 62,
    },
    "all_prompts": {
        "model.rs.num_rollout_samples": 8000,
        "model.rs.num_rollouts_per_prompt": 4,
        "model.rs.pool.passes": 2,
        "model.optim.lr": 2e-3,
        "model.optim.sched.name": "CosineAnnealing",
        "model.optim.sched.constant_steps": 0,
        "model.optim.sched.min_lr": 2e-5,
        "trainer.rs.max_steps": 8,
    },
    "random": {"model.rs.min_reward": None, "model.rs.selection": AT_RANDOM, "trainer.rs.max_steps": 62},
}


def at_random(
    prompt: str, responses: list[str], rewards: list[float], metadata: dict[str, Any]
) -> list[bool]:
    """A selection that looks at no reward: one rollout of each prompt."""
    chosen = random.Random(json.dumps([prompt, responses])).randrange(len(responses))
    return [place == chosen for place in range(len(responses))]


def story_config(recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """The base config of the stories, with a recipe's overrides."""
    overrides, steps = STORIES[recipe]
    tree = {
        "trainer.threads": 1,
        "trainer.rs.max_steps": steps[-1],
        "trainer.rs.max_epochs": 100,
        "trainer.rs.val_check_interval": None,
        "trainer.rs.save_interval": 1000,
        "remote_rm.in_process": True,
        "remote_rm.judge.name": "sentiment",
        "exp_manager.explicit_log_dir": str(folder / "run"),
        "exp_manager.create_tensorboard_logger": False,
        "pretrained_checkpoint.restore_from_path": str(DATA / "stories260k"),
        "model.seed": seed,
        "model.micro_batch_size": 16,
        "model.global_batch_size": 16,
        "model.optim.lr": 3e-4,
        "model.optim.weight_decay": 0.0,
        "model.optim.sched.name": "constant",
        "model.optim.sched.warmup_steps": 0,
        "model.data.data_prefix.train": str(DATA / "tinystories" / "prompts_train.jsonl"),
        "model.rs.num_rollout_samples": 128,
        "model.rs.num_rollouts_per_prompt": 8,
        "model.rs.length_params.max_length": 64,
        "model.rs.kl_samples": 0,  # a figure that the opponent does not have either
        **overrides,
    }
    anchor = tree.get("model.rs.objective.anchor")
    if anchor is not None:
        tree["model.rs.objective.anchor"] = {**anchor, "files": [str(write_anchors(folder))]}
    return tree


def write_anchors(folder: Path) -> Path:
    """Whole stories that no figure is measured on, as supervised rows; a cut one would teach to end early."""
    from measuring import NUM_ANCHORS

    lines = (DATA / "tinystories" / "stories.jsonl").read_text().splitlines()[:NUM_ANCHORS]
    path = folder / "anchors.jsonl"
    with path.open("w") as file:
        for line in lines:
            text = json.loads(line)["text"]
            end = text.find(".") + 1
            file.write(json.dumps({"prompt": text[:end], "response": text[end:]}) + "\n")
    return path


def cpu_seconds() -> float:
    """User and system time of this process and its ended children."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


class Curve:
    """A sink of the trainer's figures that writes down weights and costs after some steps."""

    def __init__(self, folder: Path, policy: Any, save_at: Sequence[int]) -> None:
        self.folder, self.policy, self.save_at = folder, policy, save_at
        self.tokens, self.writing = 0, 0.0
        self.began = cpu_seconds()
        self._write(0, 0.0)
        self.began = cpu_seconds()

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        now = cpu_seconds()
        self.tokens += int(metrics["tokens/generated"])
        if step in self.save_at:
            self._write(step, now - self.began - self.writing)
        self.writing += cpu_seconds() - now

    def _write(self, step: int, seconds: float) -> None:
        self.policy.export(self.folder / f"step_{step}")
        row = {"step": step, "cpu_seconds": seconds, "generated_tokens": self.tokens}
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps({**row, "folder": f"step_{step}"}) + "\n")

    def finalize(self, status: str) -> None: ...


def run_story(recipe: str, seed: int, folder: Path) -> None:
    """Train by a recipe, in this process; the curve is in the folder."""
    from rs_aligner.commands import build
    from rs_aligner.commands.run_data import read_rs_data
    from rs_aligner.config import TrainRSConfig, load_config, num_optimizer_steps
    from rs_aligner.config.tree import tree_of
    from rs_aligner.reward.client import RemoteGPTRMClient

    folder.mkdir(parents=True)
    config = load_config(tree_of(story_config(recipe, seed, folder)), TrainRSConfig)
    os.environ["OMP_NUM_THREADS"] = "1"
    tokenizer, positions = build.read_tokenizer(config)
    data = read_rs_data(config, tokenizer, positions)

    import torch

    from rs_aligner.record.run import Run
    from rs_aligner.trainers.round import Judges
    from rs_aligner.trainers.rs import RSTrainer

    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    steps = num_optimizer_steps(config, len(data.prompts))
    with (
        RemoteGPTRMClient(config.remote_rm) as client,
        build.policy_of(config, tokenizer, steps) as policy,
    ):
        client.wait_until_ready()
        curve = Curve(folder, policy, STORIES[recipe][1])
        with Run(config.exp_manager, is_first=True, loggers=[curve]) as run:
            RSTrainer(config, policy, Judges(client), data._replace(validation=()), run).fit()
    about = {"recipe": recipe, "seed": seed, "overrides": STORIES[recipe][0], "load_average": [load]}
    (folder / "about.json").write_text(json.dumps(about))
    shutil.rmtree(folder / "run")


def run_trl(python: str, setting: str, seed: int, folder: Path) -> None:
    """Train by TRL's GRPO, in a process of its environment."""
    prompts, lr, steps = TRL[setting]
    saved = ",".join(map(str, steps))
    command = [python, "-W", "ignore", str(ROOT / "benchmarks" / "trl_grpo.py"), "--out", str(folder)]
    command += ["--seed", str(seed), "--threads", "1", "--prompts", str(prompts), "--lr", str(lr)]
    command += ["--micro-batch", str(min(64, 8 * prompts))]
    _run([*command, "--save-at", saved], PYTHONPATH=str(ROOT))


def _run(command: list[str], **environment: str) -> None:
    told = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RS_ALIGNER_TEST_DATA": str(DATA), **environment},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    if told.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {told.returncode}:\n{(told.stdout + told.stderr)[-3000:]}"
        )


def stories(args: argparse.Namespace) -> None:
    """All recipes and TRL, seed by seed; then the measurement of all."""
    import transformers
    from curves import read, shown, summary
    from measuring import measure_curve

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    systems = [name for name in STORIES if not args.only or name in args.only]
    if args.trl:
        systems += [f"trl_{name}" for name in TRL if not args.only or f"trl_{name}" in args.only]
    known: dict[str, dict[str, float]] = {}
    for seed in range(args.seeds):
        for system in systems:
            folder = args.out / f"{system}_{seed}"
            if not (folder / "about.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                began = time.monotonic()
                if system.startswith("trl_"):
                    run_trl(args.trl, system.removeprefix("trl_"), seed, folder)
                else:
                    _run([sys.executable, "-W", "ignore", __file__, "one", system, str(seed), str(folder)])
                print(f"{system}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
            if not args.later and not (folder / "measured.jsonl").is_file():
                measure_curve(folder / "curve.jsonl", known=known)
    if args.later:
        return
    found: dict[str, Any] = {}
    for system in systems:
        folders = [args.out / f"{system}_{seed}" for seed in range(args.seeds)]
        found[system] = summary([read(folder) for folder in folders], LEVELS)
        told = [json.loads((folder / "about.json").read_text()) for folder in folders]
        found[system]["overrides"] = told[0].get("overrides", told[0])
        found[system]["load_average"] = [one.get("load_average", [0])[0] for one in told]
        print(shown(system, found[system]))
    write(args.results, "learning_stories.json", found)


def arithmetic(args: argparse.Namespace) -> None:
    """The warm start and then each recipe, for each seed."""
    from curves import mean_and_error

    found: dict[str, Any] = {}
    recipes = [name for name in ARITHMETIC if not args.only or name in args.only]
    rows: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in recipes}
    for seed in range(args.seeds):
        folder = args.out / str(seed)
        if not (folder / "sft" / "final").is_dir():
            make = [str(ROOT / "examples" / "arithmetic" / "make_task.py"), "--out", str(folder / "task")]
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, *make, "--seed", str(seed)])
            sft = [str(ROOT / "examples" / "train_sft.py"), "--config-name", "arithmetic_sft"]
            _run([sys.executable, *sft, f"model.seed={seed}", "trainer.threads=1"], ARITHMETIC=str(folder))
        for recipe in recipes:
            out = folder / recipe
            if not (out / "done").is_file():
                shutil.rmtree(out, ignore_errors=True)
                _run(
                    [sys.executable, "-W", "ignore", __file__, "sum", recipe, str(seed), str(out)],
                    ARITHMETIC=str(folder),
                )
            lines = (out / "curve.jsonl").read_text().splitlines()
            rows[recipe].append([json.loads(line) for line in lines])
            print(f"{recipe}, seed {seed}: {rows[recipe][-1][-1]}", flush=True)
    for recipe in recipes:
        course = [
            {
                "step": some[0]["step"],
                **{key: mean_and_error([row[key] for row in some]) for key in ("solved", "cpu_seconds")},
            }
            for some in zip(*rows[recipe], strict=True)
        ]
        best = [max(row["solved"] for row in curve) for curve in rows[recipe]]
        found[recipe] = {"course": course, "best": mean_and_error(best), "overrides": ARITHMETIC[recipe]}
        last = course[-1]
        print(
            f"{recipe}: solved {course[0]['solved']} at the start, {last['solved']} at the end, best {best}"
        )
    write(args.results, "learning_arithmetic.json", found)


class Solved:
    """A sink that keeps the held-out share and the CPU seconds until each validation."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began = folder, cpu_seconds()

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if "validation/reward" in metrics:
            row = {"step": step, "solved": metrics["validation/reward"]}
            row["cpu_seconds"] = cpu_seconds() - self.began  # validations included
            with (self.folder / "curve.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def finalize(self, status: str) -> None: ...


def run_sum(recipe: str, seed: int, folder: Path) -> None:
    """Rejection sampling on additions, in this process."""
    from omegaconf import OmegaConf

    from rs_aligner.commands.train_rs import fit
    from rs_aligner.config import TrainRSConfig, load_config
    from rs_aligner.config.tree import read_tree

    folder.mkdir(parents=True)
    overrides = ARITHMETIC[recipe]
    tree = read_tree(ROOT / "examples" / "conf" / "arithmetic.yaml")
    steps = overrides["trainer.rs.max_steps"]
    for key, value in {
        "trainer.threads": 1,
        "trainer.rs.max_epochs": 100,
        "trainer.rs.val_check_interval": max(1, steps // 8),
        "trainer.rs.save_interval": 1000,
        "remote_rm.in_process": True,
        "remote_rm.judge": {"name": "exact_answer"},
        "model.seed": seed,
        "exp_manager.explicit_log_dir": str(folder),
        "exp_manager.create_tensorboard_logger": False,
        **overrides,
    }.items():
        OmegaConf.update(tree, key, value, merge=False, force_add=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    fit(load_config(tree, TrainRSConfig), loggers=lambda: [Solved(folder)])
    shutil.rmtree(folder / "checkpoints")
    (folder / "done").touch()


def write(results: Path, name: str, found: dict[str, Any]) -> None:
    """Keep the figures, without this machine's paths."""
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1).replace(f"{ROOT}/", "").replace(f"{DATA}/", "")
    (results / name).write_text(text + "\n")
    print(f"written: {results / name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("stories", "arithmetic"):
        command = commands.add_parser(name)
        command.add_argument(
            "--out", type=Path, required=True, help="folder of the runs; goes on where it was"
        )
        command.add_argument("--seeds", type=int, default=3)
        command.add_argument("--only", type=lambda text: text.split(","), help="some recipes, by name")
        command.add_argument("--results", type=Path, default=RESULTS)
        command.add_argument("--trl", help="the Python of an environment with TRL (stories)")
        command.add_argument("--later", action="store_true", help="leaves the measurement to another call")
    for name in ("one", "sum"):  # a single run, in its own process
        command = commands.add_parser(name)
        command.add_argument("recipe")
        command.add_argument("seed", type=int)
        command.add_argument("folder", type=Path)
    args = parser.parse_args()
    match args.command:
        case "stories":
            args.out = args.out.resolve()
            stories(args)
        case "arithmetic":
            args.out = args.out.resolve()
            arithmetic(args)
        case "one":
            run_story(args.recipe, args.seed, args.folder)
        case "sum":
            run_sum(args.recipe, args.seed, args.folder)


if __name__ == "__main__":
    main()
