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

from rs_aligner import build
from rs_aligner.api import fit
from rs_aligner.config import TrainRSConfig, load_config, open_overrides


@hydra.main(version_base=None, config_path="conf", config_name="train_rs")
def main(raw: DictConfig) -> None:
    with experiment.one_line_errors():
        config = load_config(raw, TrainRSConfig)
        experiment.start_ranks(config)
        experiment.keep_config(raw, config.exp_manager.explicit_log_dir)
        train(config)


def train(config: TrainRSConfig) -> None:
    # What can be wrong comes first, what is slow to import last.
    from rs_aligner.reward.client import RemoteGPTRMClient

    first = experiment.rank() == 0
    with RemoteGPTRMClient(config.remote_rm) as client:
        if first:
            build.say("waiting for the judge")
            client.wait_until_ready()
        run = fit(config, client, is_first=first, loggers=partial(experiment.loggers, config.exp_manager))
    if first:
        print(f"the trained policy: {run.final}\nfigures and rollouts: {run.folder}/metrics.jsonl, rollouts/")


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
