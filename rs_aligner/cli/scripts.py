"""What each command does with the config that Hydra has read: check it, see to the ranks, run.

A function a command, which is a script of `examples/`, too. All are put together alike: the typed config, the
ranks, the function of `commands`, and where to look for what came of it. Each ends the process with one line
where something has to be mended. Left out on purpose: where the config comes from.
"""

from __future__ import annotations

import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from omegaconf import DictConfig

from rs_aligner import progress, stopping
from rs_aligner.cli.errors import one_line_errors
from rs_aligner.cli.ranks import rank, show_log, start_ranks
from rs_aligner.config import (
    GenerateConfig,
    ServeRewardConfig,
    ServeRolloutsConfig,
    TrainConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
)
from rs_aligner.config.tree import plain
from rs_aligner.loggers import terminal
from rs_aligner.threads import wait_briefly
from rs_aligner.watchdog import show_stacks_on_quit, watching

if TYPE_CHECKING:
    from rs_aligner.record.run import Run
    from rs_aligner.record.sinks import Logger

WATCHED_SHARE = 0.9  # of the time that ranks wait for each other: stacks are shown before they give up

AnyConfig = (
    TrainRSConfig
    | TrainSFTConfig
    | TrainRewardModelConfig
    | ServeRewardConfig
    | ServeRolloutsConfig
    | GenerateConfig
)
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
        with _heeding(config):
            write_answers(config, is_first=rank() == 0)


def serve_reward(raw: DictConfig) -> None:
    """Serve a judge until a signal, or examine it: `examples/serve_reward.py`."""
    from rs_aligner.commands.serve_reward import serve

    with one_line_errors(RuntimeError):  # of Triton, of the judge's framework: the server cannot go on
        config = load_config(raw, ServeRewardConfig)
        wait_briefly()
        show_stacks_on_quit()
        sys.exit(serve(config))


def serve_rollouts(raw: DictConfig) -> None:
    """Serve rollouts by vLLM until a signal: `examples/serve_rollouts.py`."""
    from rs_aligner.commands.serve_rollouts import serve

    with one_line_errors(RuntimeError):  # of vLLM, which has ended
        config = load_config(raw, ServeRolloutsConfig)
        show_log()
        show_stacks_on_quit()
        serve(config)


class Script(NamedTuple):
    """A command that reads a config: what runs it, and the config's root."""

    run: Callable[[DictConfig], None]
    schema: type[AnyConfig]


SCRIPTS = {
    "train": Script(train_rs, TrainRSConfig),
    "sft": Script(train_sft, TrainSFTConfig),
    "reward-model": Script(train_reward_model, TrainRewardModelConfig),
    "serve": Script(serve_reward, ServeRewardConfig),
    "serve-rollouts": Script(serve_rollouts, ServeRolloutsConfig),
    "generate": Script(generate, GenerateConfig),
}
"""By the names of `rs-aligner`'s commands."""


def show_plan(schema: Any) -> Callable[[DictConfig], None]:
    """What prints the plan of a command: `rs-aligner plan`."""

    def show(raw: DictConfig) -> None:
        from rs_aligner.commands.ahead import plan_of

        with one_line_errors():
            config = load_config(raw, schema)
            show_log()
            print(plan_of(config).text)

    return show


def check_all(schema: Any) -> Callable[[DictConfig], None]:
    """What checks all that a command needs: `rs-aligner check`."""

    def check(raw: DictConfig) -> None:
        with one_line_errors():
            config = load_config(raw, schema)
            from rs_aligner.commands import ahead

            show_log()
            for line in ahead.check(config):
                print(f"ok  {line}", flush=True)
            print("all is right that can be checked before a model is loaded")

    return check


AHEAD = {"plan": show_plan, "check": check_all}


def _train(raw: DictConfig, schema: type[Config], fit: Fit[Config], told: str) -> None:
    """Every training; `told` is what the first rank shows at the end."""
    with one_line_errors():
        config = load_config(raw, schema)
        start_ranks(config)
        is_first, manager, given = rank() == 0, config.exp_manager, plain(raw)
        with _heeding(config, stop_within=manager.stop_within):
            began, key = stopping.process_started(), "exp_manager.max_time_per_run"
            stopping.limit(manager.max_time_per_run, key=key, since=began)
            folder, several = Path(manager.explicit_log_dir), config.world_size > 1
            stopping.watch(folder, is_first=is_first, tells_others=several)
            run = fit(config, is_first=is_first, loggers=partial(_view, config), given=given)
        if is_first:
            print(told.format(run=run))


def _view(config: TrainConfig) -> list[Logger]:
    """What draws the run on a terminal, if there is one that it may be drawn on."""
    if not (config.trainer.enable_progress_bar and terminal.can_draw()):
        return []
    loop = config.loop
    ends_early = any(getattr(loop, name, None) is not None for name in ("patience", "stop_at_validation"))
    folder, replicas = Path(config.exp_manager.explicit_log_dir), config.data_parallel_size
    return [terminal.View(folder, ends_early=ends_early, replicas=replicas).start()]


@contextmanager
def _heeding(config: TrainConfig | GenerateConfig, stop_within: float = math.inf) -> Iterator[None]:
    """Heed signals, watch for hangs, show bars or none; a second Ctrl-C ends the process wherever it is."""
    who = f"rank {rank()} on {socket.gethostname()}"
    limit = WATCHED_SHARE * 60 * config.trainer.timeout_minutes
    with (
        stopping.signals(stop_within=stop_within, second_interrupt=signal.SIG_DFL),
        watching(limit, who),
        progress.bars(config.trainer.enable_progress_bar),
    ):
        yield
