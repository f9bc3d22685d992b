"""The commands that read a config: Hydra composes it from `conf/` and the overrides, `scripts` does the rest.

`python examples/train_rs.py` and `rs-aligner train` are the same call of this. Left out on purpose: what the
config means (`config`), and what is done with it (`scripts`, `commands`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from rs_aligner.cli import scripts
from rs_aligner.config import open_overrides

PACKAGE = Path(__file__).resolve().parents[1]


def conf_folder() -> Path:
    """Where the configs are: in the package of a wheel, in `examples/conf` of a source checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parent / "examples" / "conf"


def train(arguments: Sequence[str]) -> None:
    """Rejection sampling, by `train_rs.yaml`."""
    _run("train_rs", scripts.train_rs, arguments)


def sft(arguments: Sequence[str]) -> None:
    """Supervised training, by `train_sft.yaml`."""
    _run("train_sft", scripts.train_sft, arguments)


def reward_model(arguments: Sequence[str]) -> None:
    """A reward model from pairs, by `train_reward_model.yaml`."""
    _run("train_reward_model", scripts.train_reward_model, arguments)


def serve(arguments: Sequence[str]) -> None:
    """A judge as a service, by `serve_reward.yaml`."""
    _run("serve_reward", scripts.serve_reward, arguments)


def generate(arguments: Sequence[str]) -> None:
    """A file of answers, by `generate.yaml`."""
    _run("generate", scripts.generate, arguments)


def _run(config_name: str, script: Callable[[DictConfig], None], arguments: Sequence[str]) -> None:
    sys.argv[1:] = open_overrides(arguments)  # Hydra reads no other
    hydra.main(version_base=None, config_path=str(conf_folder()), config_name=config_name)(script)()
