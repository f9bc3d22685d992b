"""Serve a judge: `python examples/serve_reward.py judge.name=exact_answer inference.port=5555`.

Reads conf/serve_reward.yaml and the overrides, checks them, and serves until Ctrl-C or SIGTERM. Exits with
status 2 and the reason if the config, the judge or the address cannot be used, and 1 if the server breaks.
With check=true it examines the judge instead and ends, with status 1 if the judge does not pass.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from rs_aligner.cli import scripts
from rs_aligner.config import open_overrides


@hydra.main(version_base=None, config_path="conf", config_name="serve_reward")
def main(raw: DictConfig) -> None:
    scripts.serve_reward(raw)


if __name__ == "__main__":
    sys.argv[1:] = open_overrides(sys.argv[1:])
    main()
