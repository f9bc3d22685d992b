"""Rejection sampling fine-tuning: `python examples/train_rs.py exp_manager.explicit_log_dir=runs/first ...`.

Reads conf/train_rs.yaml and the overrides, checks them, waits for the judge (see serve_reward.py), trains,
and leaves metrics, ledger, checkpoints and the trained policy in the run's folder. Exits with status 2 and
one message where something has to be mended first.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from rs_aligner.cli import scripts
from rs_aligner.config import open_overrides


@hydra.main(version_base=None, config_path="conf", config_name="train_rs")
def main(raw: DictConfig) -> None:
    scripts.train_rs(raw)


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
