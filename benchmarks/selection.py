"""What sampling until enough are accepted saves: generated tokens at as many accepted rollouts as fixed N.

    python benchmarks/selection.py --work runs/selection            makes 3 policies; about 5 CPU minutes
    python benchmarks/selection.py --work runs/selection --quick    one policy, few prompts

A real policy and a real judge: the quickstart's additions, on which a small model is trained until it is
right about a third of the time, and the exact-answer judge in this process. Each seed is a task and a policy
of its own. Both sides go through the trainer's `Collector`:

    until     `collect_until`: k accepted wanted of each prompt, at most 64 rollouts of one, in rounds; a
              budget of so many rollouts for each prompt, which all share
    fixed N   `collect`: N rollouts of every prompt

Accepted rollouts beyond k of a prompt count on neither side. The tokens of fixed N are read where its
accepted are as many as those of until, on the straight line between two whole Ns. Seeds of rollouts come from
prompt and index alone, so fixed N = n draws the first n rollouts of fixed N = 64, and one collection tells of
every n: both sides see the same answers, which takes noise out of the ratio. Tokens are those of responses;
that every round runs its prompts once more shows in `prompt_runs`.

The histogram of pass rates is recorded with it. `alike` is the same comparison on the prompts with pass rates
of 0.2 to 0.4 only: what is saved there comes from luck, which differs from prompt to prompt at the same pass
rate, too. Left out on purpose: training on what was accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from curves import mean_and_error

from rs_aligner.commands import build
from rs_aligner.commands.run_data import read_prompts
from rs_aligner.config import TrainRSConfig, UntilConfig
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.rollout import Group, Prompt, Rollout, Score
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.collect import Collector, num_tokens
from rs_aligner.trainers.round import Judges

if TYPE_CHECKING:
    from rs_aligner.policy.policy import MegatronPolicy

ROOT = Path(__file__).resolve().parents[1]
TARGET = 0.6
LONGEST = 64  # the most rollouts of a prompt, on both sides
ALIKE = (0.2, 0.4)  # pass rates of the prompts that count as alike
SETTINGS = (  # name, rollouts a round, budget of a prompt for each accepted one that is wanted
    ("growing rounds", None, 8),
    ("rounds of 1", 1, 8),
    ("rounds of 2", 2, 8),
    ("rounds of 4", 4, 8),
    ("half the budget", None, 4),
    ("alike", None, 8),
)
Curve = npt.NDArray[np.float64]


def make_policy(folder: Path, seed: int) -> None:
    """A task, and a policy that is right a third of the time, in `folder`; nothing if they are there."""
    if (folder / "sft" / "final").is_dir():
        return
    env = {**os.environ, "ARITHMETIC": str(folder), "PYTHONPATH": str(ROOT)}
    task = ("examples/arithmetic/make_task.py", "--out", str(folder / "task"), "--seed", str(seed))
    sft = ("examples/train_sft.py", "--config-name", "arithmetic_sft", f"model.seed={seed}")
    for command in (task, (*sft, "trainer.threads=1")):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


class Counting:
    """A policy that counts how often it is asked, and for how many prompts."""

    def __init__(self, policy: MegatronPolicy) -> None:
        self._policy, self.gather = policy, policy.gather
        self.rounds = self.prompt_runs = 0
        self.weights_seconds = policy.weights_seconds  # it has no servers

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        """As the policy's."""
        self.rounds, self.prompt_runs = self.rounds + 1, self.prompt_runs + len(request.prompts)
        return self._policy.generate(request)


@contextmanager
def collector_of(folder: Path, seed: int, num_prompts: int) -> Iterator[tuple[Collector, list[Prompt]]]:
    """The trainer's collector on a policy, its judge in this process, and the first prompts of its task."""
    config = TrainRSConfig.model_validate(
        {
            "trainer": {"accelerator": "cpu", "threads": 1},
            "exp_manager": {"explicit_log_dir": str(folder / "unused")},
            "pretrained_checkpoint": {"restore_from_path": str(folder / "sft" / "final")},
            "remote_rm": {"in_process": True, "judge": {"name": "exact_answer"}},
            "model": {
                "seed": seed,
                "rs": {"length_params": {"max_length": 8}, "kl_samples": 0},
                "data": {"data_prefix": {"train": str(folder / "task" / "train.jsonl")}},
            },
        }
    )
    tokenizer, positions = build.read_tokenizer(config)
    files = config.model.data.data_prefix.train
    rows = read_prompts(files, config, tokenizer, positions).prompts[:num_prompts]
    prompts = [replace(prompt, position=number, row=number) for number, prompt in enumerate(rows)]
    with RemoteGPTRMClient(config.remote_rm) as judge:
        judge.wait_until_ready()
        with build.policy_of(config, tokenizer, 1) as policy:
            yield Collector(config, Counting(policy), Judges(judge)), prompts


def passes(group: Group) -> list[bool]:
    """Whether each rollout of a group is right."""
    assert all(isinstance(score, Score) for score in group.scores), "the judge of this process never fails"
    return [isinstance(score, Score) and score.reward >= 1 for score in group.scores]


def fixed_curves(groups: Sequence[Group], accepted: int) -> tuple[Curve, Curve]:
    """Accepted (at most so many a prompt) and tokens of fixed N, for N from 0 to that of the groups."""
    passed_PN = np.array([passes(group) for group in groups], dtype=np.int64)
    tokens_PN = np.array([[len(rollout.token_ids) for rollout in group.rollouts] for group in groups])
    found_N = np.minimum(passed_PN.cumsum(axis=1), accepted).sum(axis=0)
    spent_N = tokens_PN.cumsum(axis=1).sum(axis=0)
    return np.concatenate([[0.0], found_N]), np.concatenate([[0.0], spent_N])


def at_equal_accepted(found_N: Curve, spent_N: Curve, wanted: float) -> tuple[float, float]:
    """N and tokens at which fixed N has as many accepted, between two whole Ns."""
    assert wanted <= found_N[-1], "until draws some of the rollouts of the largest N, and no others"
    after = int(np.argmax(found_N >= wanted))  # the first N that suffices
    if found_N[after] == wanted:
        return float(after), float(spent_N[after])
    share = (wanted - found_N[after - 1]) / (found_N[after] - found_N[after - 1])
    return after - 1 + share, float(spent_N[after - 1] + share * (spent_N[after] - spent_N[after - 1]))


def compare(
    collector: Collector, prompts: Sequence[Prompt], fixed: Sequence[Group], until: UntilConfig, budget: int
) -> dict[str, float]:
    """One setting of until against fixed N on the same prompts; figures are a prompt's means."""
    collector.policy.rounds = collector.policy.prompt_runs = 0
    sampling, began = collector.rs.sampling_params, time.process_time()
    groups = collector.collect_until(prompts, until, budget, sampling, step=1, what="until").groups
    seconds, number = time.process_time() - began, len(prompts)
    passed = [sum(passes(group)) for group in groups]
    accepted, tokens = sum(min(until.accepted, one) for one in passed), sum(map(num_tokens, groups))
    found_N, spent_N = fixed_curves(fixed, until.accepted)
    fixed_n, fixed_tokens = at_equal_accepted(found_N, spent_N, accepted)
    before = int(fixed_n)  # the whole N at or below it
    fixed_PN = np.array([passes(group)[:before] for group in fixed])
    return {
        "accepted": accepted / number,
        "prompts_with_one": sum(one > 0 for one in passed) / number,
        "prompts_with_one_fixed": float(fixed_PN.any(axis=1).mean()),
        "tokens": tokens / number,
        "fixed_N": fixed_n,
        "fixed_tokens": fixed_tokens / number,
        "ratio": tokens / fixed_tokens,
        "rounds": collector.policy.rounds,
        "prompt_runs": collector.policy.prompt_runs / number,
        "cpu_seconds": seconds,
    }


def one_seed(folder: Path, seed: int, num_prompts: int, wanted: Sequence[int]) -> dict[str, Any]:
    """Every setting on one policy."""
    make_policy(folder, seed)
    found: dict[str, Any] = {"seed": seed, "load": os.getloadavg()[0]}
    with collector_of(folder, seed, num_prompts) as (collector, prompts):
        sampling = collector.rs.sampling_params
        fixed = collector.collect(prompts, LONGEST, sampling, step=1, what="fixed N").groups
        rates = np.array([np.mean(passes(group)) for group in fixed])
        histogram = np.histogram(rates, bins=10, range=(0, 1))[0] / num_prompts
        found["pass_rates"] = {
            "mean": float(rates.mean()),
            "deviation": float(rates.std()),
            "never": float((rates == 0).mean()),
            "shares_by_tenths": histogram.tolist(),
        }
        alike = [number for number, rate in enumerate(rates) if ALIKE[0] <= rate <= ALIKE[1]]
        some, some_fixed = [prompts[number] for number in alike], [fixed[number] for number in alike]
        found["alike_prompts"] = len(alike)
        for k in wanted:
            for name, rounds, budget in SETTINGS:
                until = UntilConfig(accepted=k, at_least=1, rollouts_a_round=rounds, max_rollouts=LONGEST)
                asked = (some, some_fixed) if name == "alike" else (prompts, fixed)
                found[f"k={k}, {name}"] = compare(collector, *asked, until, budget * k)
                say(f"seed {seed}, k={k}, {name}: {found[f'k={k}, {name}']['ratio']:.3f}")
    return found


def summary(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with standard errors over seeds, of every figure of every setting."""
    found = {}
    for name in (name for name in seeds[0] if name.startswith("k=")):
        rows = [one[name] for one in seeds]
        found[name] = {key: _rounded([row[key] for row in rows]) for key in rows[0]}
    return found


def _rounded(values: Sequence[float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in mean_and_error(values).items()}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    """A line for each setting."""
    lines = [
        f"{'':<26}{'ratio':>16}{'accepted':>10}{'tokens':>9}{'fixed N':>9}{'rounds':>8}   target {TARGET}"
    ]
    for name, row in results.items():
        ratio = f"{row['ratio']['mean']:.3f} ± {row['ratio'].get('se', 0):.3f}"
        cells = "".join(
            f"{row[key]['mean']:>{width}.{digits}f}"
            for key, width, digits in (
                ("accepted", 10, 2),
                ("tokens", 9, 1),
                ("fixed_N", 9, 1),
                ("rounds", 8, 0),
            )
        )
        lines.append(f"{name:<26}{ratio:>16}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the policies; those there are used"
    )
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="one seed, 64 prompts, k of 1 and 2")
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    seeds, num_prompts, wanted = [int(seed) for seed in args.seeds.split(",")], args.prompts, (1, 2, 4)
    if args.quick:
        seeds, num_prompts, wanted = seeds[:1], 64, (1, 2)
    torch.set_num_threads(1)
    found = [one_seed(args.work.resolve() / f"policy_{seed}", seed, num_prompts, wanted) for seed in seeds]
    results = summary(found)
    print(table(results))
    if args.out:
        about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        policies = [{key: one[key] for key in one if not key.startswith("k=")} for one in found]
        whole = {**about, "prompts": num_prompts, "policies": policies, "results": results}
        args.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
