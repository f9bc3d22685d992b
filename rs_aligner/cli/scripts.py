"""What each script of `examples/` does with the config that Hydra has read: check it, see to the ranks, run.

A function a command, all put together alike: the typed config, the ranks, the function of `commands`, and
where to look for what came of it. Each ends the process with one line where something has to be mended. Left
out on purpose: where the config comes from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from omegaconf import DictConfig

from rs_aligner.cli.errors import one_line_errors
from rs_aligner.cli.loggers import loggers
from rs_aligner.cli.ranks import rank, start_ranks
from rs_aligner.config import (
    GenerateConfig,
    ServeRewardConfig,
    TrainConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
)
from rs_aligner.config.tree import plain
from rs_aligner.threads import wait_briefly

if TYPE_CHECKING:
    from rs_aligner.record.run import Logger, Run

Config = TypeVar("Config", TrainRSConfig, TrainSFTConfig, TrainRewardModelConfig)
Config_contra = TypeVar("Config_contra", bound=TrainConfig, contravariant=True)


class Fit(Protocol[Config_contra]):
    """A training command of `commands`: from a checked config to a closed run's folder."""

    def __call__(
        self,
        config: Config_contra,
        /,
        *,
        is_first: bool,
        loggers: Callable[[], Sequence[Logger]],
        given: Mapping[str, Any],
    ) -> Run: ...


def train_rs(raw: DictConfig) -> None:
    """Rejection sampling: `examples/train_rs.py`."""
    from rs_aligner.commands.train_rs import fit

    told = "the trained policy: {run.final}\nfigures and rollouts: {run.folder}/metrics.jsonl, rollouts/"
    _train(raw, TrainRSConfig, fit, told)


def train_sft(raw: DictConfig) -> None:
    """Supervised training: `examples/train_sft.py`."""
    from rs_aligner.commands.train_sft import fit

    _train(raw, TrainSFTConfig, fit, "the trained policy: {run.final}\nfigures: {run.folder}/metrics.jsonl")


def train_reward_model(raw: DictConfig) -> None:
    """A reward model from pairs: `examples/train_reward_model.py`."""
    from rs_aligner.commands.train_reward_model import fit

    told = "the reward model: {run.final}\nfigures: {run.folder}/metrics.jsonl"
    _train(raw, TrainRewardModelConfig, fit, told)


def generate(raw: DictConfig) -> None:
    """A file of answers: `examples/generate.py`."""
    from rs_aligner.commands.generate import write_answers

    with one_line_errors():
        config = load_config(raw, GenerateConfig)
        start_ranks(config)
        write_answers(config, is_first=rank() == 0)


def serve_reward(raw: DictConfig) -> None:
    """Serve a judge until a signal, or examine it: `examples/serve_reward.py`."""
    from rs_aligner.commands.serve_reward import serve

    with one_line_errors(RuntimeError):  # of Triton, of the judge's framework: the server cannot go on
        config = load_config(raw, ServeRewardConfig)
        wait_briefly()
        sys.exit(serve(config))


def _train(raw: DictConfig, schema: type[Config], fit: Fit[Config], told: str) -> None:
    """Every training; `told` is what the first rank shows at the end."""
    with one_line_errors():
        config = load_config(raw, schema)
        start_ranks(config)
        is_first = rank() == 0
        given = plain(raw)
        run = fit(config, is_first=is_first, loggers=partial(loggers, config.exp_manager), given=given)
        if is_first:
            print(told.format(run=run))
