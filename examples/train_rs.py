"""Rejection sampling fine-tuning: `python examples/train_rs.py exp_manager.explicit_log_dir=runs/first ...`.

Reads conf/train_rs.yaml and the overrides, checks them, waits for the judge (see serve_reward.py), trains,
and leaves metrics, ledger, checkpoints and the trained policy in the run's folder. Exits with status 2 and
one message where something has to be mended first.
"""

from __future__ import annotations

import sys
from functools import partial

import experiment
import hydra
from omegaconf import DictConfig

from rs_aligner.commands.train_rs import fit
from rs_aligner.config import TrainRSConfig, load_config, open_overrides


@hydra.main(version_base=None, config_path="conf", config_name="train_rs")
def main(raw: DictConfig) -> None:
    with experiment.one_line_errors():
        config = load_config(raw, TrainRSConfig)
        experiment.start_ranks(config)
        experiment.keep_config(raw, config.exp_manager.explicit_log_dir)
        first = experiment.rank() == 0
        run = fit(config, is_first=first, loggers=partial(experiment.loggers, config.exp_manager))
        if first:
            print(f"the trained policy: {run.final}")
            print(f"figures and rollouts: {run.folder}/metrics.jsonl, rollouts/")


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
