"""A reward model from pairs: `python examples/train_reward_model.py exp_manager.explicit_log_dir=runs/rm`.

Reads conf/train_reward_model.yaml and the overrides, checks them, trains a model to tell the better of two
answers, and leaves metrics, checkpoints and the reward model in the run's folder. `final/` there is what
`serve_reward.py judge.name=megatron_reward_model judge.kwargs.folder=...` serves. Exits with status 2 and
one message where something has to be mended first.
"""

from __future__ import annotations

import sys

import experiment
import hydra
from omegaconf import DictConfig

from rs_aligner.commands import build
from rs_aligner.config import (
    TrainRewardModelConfig,
    epoch_plan,
    load_config,
    num_epoch_steps,
    open_overrides,
)


@hydra.main(version_base=None, config_path="conf", config_name="train_reward_model")
def main(raw: DictConfig) -> None:
    with experiment.one_line_errors():
        config = load_config(raw, TrainRewardModelConfig)
        experiment.start_ranks(config)
        experiment.keep_config(raw, config.exp_manager.explicit_log_dir)
        train(config)


def train(config: TrainRewardModelConfig) -> None:
    # What can be wrong comes first, what is slow to import last.
    first = experiment.rank() == 0
    tokenizer, positions = build.read_tokenizer(config)

    from rs_aligner.commands.run_data import read_pair_data
    from rs_aligner.record.run import Run
    from rs_aligner.trainers.preference import PreferenceTrainer

    pairs, validation = read_pair_data(config, tokenizer, positions)
    steps = num_epoch_steps(config, len(pairs))
    if first:
        print(epoch_plan(config, len(pairs), len(validation)), flush=True)
    with build.reward_model_of(config, tokenizer, steps) as model:
        run = Run(config.exp_manager, is_writer=first, loggers=experiment.loggers(config.exp_manager))
        PreferenceTrainer(config, model, pairs, validation, run).fit()
        run.close()
    if first:
        print(f"the reward model: {run.final}\nfigures: {run.folder}/metrics.jsonl")


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
