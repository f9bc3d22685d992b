"""Does `rs-aligner replay` say what a run would keep: its predictions against real runs.

    python benchmarks/replay.py                        both tasks, about half an hour
    python benchmarks/replay.py --tasks additions --prompts 64 --out runs/look      a look

Of each task one real run of a step at N = 8 with the plain recipe is the ledger. From that the mean kept
reward is predicted at N = 2 and 4 and of four other selectors; then real runs with these settings and another
seed keep what they keep. `stories`: stories260k and the sentiment judge, on all its prompts. `additions`: the
quickstart's task from its warm start and the exact judge, without the bar under which all that is kept has a
reward of 1.

What is to be told apart is 10 % of the value. The standard errors of prediction and run are over prompts; the
table has how many standard errors of their difference 10 % are, so that chance does not decide.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", "../shared/data")).resolve()
RESULTS = ROOT / "benchmarks" / "results"
RECORDED = 8
PLAIN: dict[str, Any] = {"rollouts": RECORDED}
Settings = dict[str, Any]

OTHERS: dict[str, list[list[dict[str, Any]]]] = {
    "stories": [
        [{"name": "topk", "k": 3}],
        [{"name": "top_fraction", "fraction": 0.25}],
        [{"name": "median"}],
        [{"name": "diverse", "k": 2}],
    ],
    "additions": [
        [{"name": "topk", "k": 3}],
        [{"name": "distinct_answers"}],
        [{"name": "pass_rate", "max": 0.6}, {"name": "topk", "k": 2}],
        [{"name": "diverse", "k": 2}],
    ],
}
PROMPTS = {"stories": 512, "additions": 4096}


def settings_of(task: str) -> list[Settings]:
    """What is predicted: arguments of `report.replay.alternative`."""
    return [{"rollouts": 2}, {"rollouts": 4}, *({"selection": chain} for chain in OTHERS[task])]


def config(task: str, seed: int, prompts: int, work: Path, settings: Settings) -> dict[str, Any]:
    """One step of a task under some settings."""
    if task == "stories":
        files = [str(DATA / "tinystories" / f"prompts_{part}.jsonl") for part in ("train", "validation")]
        model, judge, longest = DATA / "stories260k", "sentiment", 64
    else:
        files = [str(work / "task" / "train.jsonl")]
        model, judge, longest = work / "sft" / "final", "exact_answer", 8
    return {
        "trainer.threads": 1,
        "trainer.accelerator": "cpu",
        "trainer.rs.max_steps": 1,
        "remote_rm.in_process": True,
        "remote_rm.judge.name": judge,
        "pretrained_checkpoint.restore_from_path": str(model),
        "model.seed": seed,
        "model.micro_batch_size": 32,
        "model.global_batch_size": 64,
        "model.data.data_prefix.train": files,
        "model.data.overlap": "warn",
        "model.rs.num_rollout_samples": prompts,
        "model.rs.num_rollouts_per_prompt": settings.get("rollouts", RECORDED),
        "model.rs.selection": settings.get("selection", []),
        "model.rs.length_params.max_length": longest,
        "model.rs.kl_samples": 0,
    }


def measure(task: str, prompts: int, work: Path) -> list[dict[str, Any]]:
    """Make the runs of a task; a row for each prediction."""
    import rs_aligner
    from rs_aligner.report.alternative import alternative
    from rs_aligner.report.replay import recorded, replay
    from rs_aligner.report.run_data import open_run

    if task == "additions" and not (work / "sft" / "final").is_dir():
        warm_up(work)
    trained = rs_aligner.train(config=config(task, 1, prompts, work, PLAIN), output_dir=work / "ledger")
    ledger = open_run(trained.folder)
    settings = settings_of(task)
    predictions = replay(ledger, [1], [alternative(ledger, **one) for one in settings])
    rows = []
    for number, (one, predicted) in enumerate(zip(settings, predictions, strict=True)):
        run = rs_aligner.train(config=config(task, 2, prompts, work, one), output_dir=work / f"run_{number}")
        real = recorded(open_run(run.folder), [1])
        assert abs((real.reward.value or 0) - run.metrics[-1]["reward/kept_mean"]) < 1e-9
        rows.append(compared(predicted.words, predicted, real))
        print(shown(rows[-1]), flush=True)
    return rows


def compared(words: str, predicted: Any, real: Any) -> dict[str, Any]:
    """A prediction beside what came of it."""
    values = predicted.reward.value, real.reward.value
    error = math.hypot(predicted.reward.error, real.reward.error)
    return {
        "selection": words,
        "rollouts": real.num_rollouts,
        "from": predicted.how,
        "predicted": values[0],
        "predicted_error": predicted.reward.error,
        "real": values[1],
        "real_error": real.reward.error,
        "off": values[0] / values[1] - 1,
        "errors_in_a_tenth": 0.1 * values[1] / error,
        "gain_predicted": predicted.gain.value,
        "gain_real": real.gain.value,
    }


def shown(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['selection'][:58]:58} N={row['rollouts']}  predicted {row['predicted']:.4f} "
        f"± {row['predicted_error']:.4f}  real {row['real']:.4f} ± {row['real_error']:.4f}  "
        f"off {row['off']:+.1%}  (10 % is {row['errors_in_a_tenth']:.1f} errors)"
    )


def warm_up(work: Path) -> None:
    """The additions and the policy that gets a third of them right."""
    make = [str(ROOT / "examples" / "arithmetic" / "make_task.py"), "--out", str(work / "task")]
    sft = [str(ROOT / "examples" / "train_sft.py"), "--config-name", "arithmetic_sft", "trainer.threads=1"]
    for command in (make, sft):
        done = {**os.environ, "ARITHMETIC": str(work), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *command], check=True, env=done, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", default="stories,additions")
    parser.add_argument("--prompts", type=int, help="of a step; by default as many as 10 %% needs")
    parser.add_argument("--out", type=Path, default=Path("runs/replay"), help="for the runs; it has none")
    parser.add_argument("--results", type=Path, default=RESULTS / "replay.json")
    args = parser.parse_args()
    found = {}
    for task in args.tasks.split(","):
        prompts = args.prompts or PROMPTS[task]
        print(f"{task}, {prompts} prompts", flush=True)
        work = (args.out / task).resolve()
        found[task] = {"prompts": prompts, "rows": measure(task, prompts, work)}
    args.results.write_text(json.dumps(found, indent=1) + "\n")
    worst = max(abs(row["off"]) for task in found.values() for row in task["rows"])
    print(f"the worst is {worst:.1%} off")


if __name__ == "__main__":
    main()
