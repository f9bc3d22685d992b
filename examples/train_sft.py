"""Supervised training: `python examples/train_sft.py exp_manager.explicit_log_dir=runs/sft ...`.

Reads conf/train_sft.yaml and the overrides, checks them, trains on prompts with their responses, and leaves
metrics, checkpoints and the trained policy in the run's folder. With a judge (it runs in this process) it
stops as soon as held-out answers are good enough. Exits with status 2 and one message where something has
to be mended first.
"""

from __future__ import annotations

import sys

import experiment
import hydra
from omegaconf import DictConfig

from rs_aligner.commands import build
from rs_aligner.config import TrainSFTConfig, epoch_plan, load_config, num_epoch_steps, open_overrides


@hydra.main(version_base=None, config_path="conf", config_name="train_sft")
def main(raw: DictConfig) -> None:
    with experiment.one_line_errors():
        config = load_config(raw, TrainSFTConfig)
        experiment.start_ranks(config)
        experiment.keep_config(raw, config.exp_manager.explicit_log_dir)
        train(config)


def train(config: TrainSFTConfig) -> None:
    # What can be wrong comes first, what is slow to import last.
    first = experiment.rank() == 0
    tokenizer, positions = build.read_tokenizer(config)

    from rs_aligner.reward.judges import load_judge, rewards_of

    judge = None if config.judge is None else rewards_of(load_judge(config.judge))

    from rs_aligner.commands.run_data import read_sft_data
    from rs_aligner.record.run import Run
    from rs_aligner.trainers.sft import SFTTrainer

    rows, validation = read_sft_data(config, tokenizer, positions)
    steps = num_epoch_steps(config, len(rows))
    if first:
        print(epoch_plan(config, len(rows), len(validation)), flush=True)
    with build.policy_of(config, tokenizer, steps) as policy:
        run = Run(config.exp_manager, is_writer=first, loggers=experiment.loggers(config.exp_manager))
        mine = judge if policy.runtime.is_source else None
        SFTTrainer(config, policy, mine, rows, validation, run).fit()
        run.close()
    if first:
        print(f"the trained policy: {run.final}\nfigures: {run.folder}/metrics.jsonl")


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
