"""Prints what came of the quickstart: the held-out score before and after, and what was kept of all rollouts.

Reads the two runs' metrics.jsonl; nothing is measured here.
"""

import argparse
import json
from pathlib import Path


def read(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def held_out(rows: list[dict[str, float]]) -> list[float]:
    return [row["validation/reward"] for row in rows if "validation/reward" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the quickstart, with task/, sft/ and rs/")
    parser.add_argument("--seconds", type=int, required=True, help="that it took")
    args = parser.parse_args()
    sft, rs, task = read(args.out / "sft"), read(args.out / "rs"), args.out / "task"
    num_held_out = len((task / "validation.jsonl").read_text().splitlines())
    steps = [row for row in rs if row["step"] > 0]
    before, after = held_out(rs)[0], held_out(rs)[-1]
    shown = [row for row in (steps[0], steps[len(steps) // 2], steps[-1]) if "reward/kept_mean" in row]

    print(f"held-out additions solved ({num_held_out:,}, greedy; none of them was trained on)")
    print(f"  before the supervised training  {held_out(sft)[0]:6.1%}   (of others)")
    print(f"  before rejection sampling       {before:6.1%}")
    print(
        f"  after {len(steps):2} steps of it            {after:6.1%}   ({100 * (after - before):+.1f} points)"
    )
    print("mean reward of the rollouts         all    kept   number kept")
    for row in shown:
        of_all = f"{row['rollouts/kept']:,} of {row['rollouts/total']:,}"
        print(
            f"  step {row['step']:<26} {row['reward/mean']:6.3f}  {row['reward/kept_mean']:6.3f}   {of_all}"
        )
    print(f"time after the installation       {args.seconds // 60} min {args.seconds % 60:02} s")
    print(f"""
the run's folder: {args.out / "rs"}
  report.html    all of it to look at, in a browser
  metrics.jsonl  the figures of every step
  rollouts/      every rollout: its text, its score, kept or not and why
  final/         the trained policy, for AutoModelForCausalLM.from_pretrained
  logs/          the figures once more, for tensorboard --logdir
  config.yaml    all settings""")


if __name__ == "__main__":
    main()
