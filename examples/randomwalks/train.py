"""Short ways through a graph, by trlX's rejection fine-tuning: its randomwalks example, from Python.

    python examples/randomwalks/train.py --out runs/randomwalks

A small policy learns 1,000 random walks, as supervised data. Then `rs_aligner.train` improves it by reward
alone: 100 walks from each of the 20 starts, two steps on those from a percentile up, again. About a minute on
one core. The settings are those of trlX's example under trlX's names, where it has them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import rs_aligner
from rs_aligner.api import TrainResult

sys.path.append(str(Path(__file__).resolve().parents[1]))
from small_policy import save_policy, warm_up
from walks import GOAL, MAX_LENGTH, NODES, Graph, draw_graph, random_walks

BATCH = 100
# 0.3 million parameters; the policy of trlX's example has 1.5 million.
SIZES = {"hidden": 96, "layers": 3, "heads": 4, "positions": 16}


def config(steps: int, seed: int) -> dict[str, Any]:
    """trlX's settings of its example, and ours for what it does not have."""
    return {
        "model.rs.rft": {
            "n_generations_per_prompt": 100,
            "start_percentile": 0.7,
            "end_percentile": 0.95,
            "n_improve_steps": 2,
            "gen_kwargs": {"max_new_tokens": MAX_LENGTH - 1, "top_k": 0, "top_p": 1.0, "temperature": 1.0},
        },
        "model.rs.num_rollout_samples": len(NODES) - 1,
        "model.global_batch_size": BATCH,
        "model.micro_batch_size": BATCH,
        "model.optim": {"lr": 3e-4, "betas": [0.9, 0.99], "weight_decay": 0.0},
        "model.optim.sched": {"name": "constant", "warmup_steps": 0},
        "model.seed": seed,
        # Held out is not a set of prompts here, but a fresh sample of walks.
        "model.rs.num_val_rollouts_per_prompt": 100,
        "model.rs.val_sampling_params.use_greedy": False,
        "trainer.rs": {"max_steps": steps, "max_epochs": steps, "val_check_interval": min(10, steps)},
    }


def run(out: Path, seed: int, steps: int = 40, **changes: Any) -> tuple[Graph, TrainResult]:
    """The whole task, its graph, walks and policy of this seed; `changes` are dotted keys of the config."""
    graph = draw_graph(seed)
    walks = random_walks(graph, 1000, seed)
    save_policy(out / "policy_start", NODES, seed, **SIZES)
    # A walk that was cut at the greatest length has no end to learn.
    ended = [(walk, walk.endswith(GOAL)) for walk in walks]
    warm_up(out / "policy_start", ended, seed, epochs=20, lr=1e-3, batch=BATCH)

    def optimality(samples: list[str], **columns: Any) -> list[float]:
        return [graph.optimality(sample) for sample in samples]

    starts = [node for node in NODES if node != GOAL]
    result = rs_aligner.train(
        reward_fn=optimality,
        prompts=starts,
        eval_prompts=starts,
        config={**config(steps, seed), **changes},
        model_path=out / "policy_start",
        output_dir=out / "run",
    )
    return graph, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    _, result = run(args.out, args.seed, args.steps)
    print("optimality of 2,000 sampled walks (1: the shortest; 0: not valid)")
    for row in result.metrics:
        if "validation/reward" in row:
            print(f"  after {row['step']:3} steps  {row['validation/reward']:.3f}")


if __name__ == "__main__":
    main()
