"""The ranks of a run: which one this is, that there are as many as configured, and how each is set up.

Left out on purpose: the ranks' process groups (`model/runtime.py`), for which torch has to be loaded.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

from rs_aligner.cli.launcher import launch, started_by_launcher
from rs_aligner.commands.build import log_handler, threads
from rs_aligner.config import ConfigError, GenerateConfig, TrainConfig
from rs_aligner.threads import wait_briefly
from rs_aligner.watchdog import show_stacks_on_quit

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"


def rank() -> int:
    """Of this process, by what `torchrun` or `srun` says; 0 when started alone."""
    return int(os.environ.get(RANK, os.environ.get("SLURM_PROCID", 0)))


def start_ranks(config: TrainConfig | GenerateConfig) -> None:
    """See to it that there are as many ranks as configured.

    Under `torchrun` or `srun` they are there already; started alone on one node with several devices,
    this starts them with the same command line, waits, and ends this process as they ended.

    Raises:
        ConfigError: another number of ranks was started than the config says.
    """
    started_by_launcher()
    wanted, per_node = config.world_size, config.trainer.devices
    if RANK in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        started = int(os.environ.get(WORLD_SIZE, os.environ.get("SLURM_NTASKS", 1)))
        if started != wanted:
            raise ConfigError(
                [f"trainer.num_nodes x trainer.devices is {wanted}, but {started} ranks run; make them equal"]
            )
        _set_up(config)
        return
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            [f"trainer.num_nodes is {config.trainer.num_nodes}: start with srun or torchrun, or set it to 1"]
        )
    if per_node > 1:
        # As this process was called, `python -m` and an installed command included.
        sys.exit(launch([sys.executable, "-u", *sys.orig_argv[1:]], per_node))
    _set_up(config)


def _set_up(config: TrainConfig | GenerateConfig) -> None:
    """Threads, logging and warnings of this rank; before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads(config).most)
    wait_briefly()
    show_stacks_on_quit()
    show_log()


def show_log() -> None:
    """Show the package's log lines on the first rank, and no other package's warnings."""
    warnings.filterwarnings("ignore", module=r"(megatron|nemo|lightning|torch|pydantic)\.")
    logger = logging.getLogger("rs_aligner")
    logger.handlers, logger.propagate = [log_handler()], False
    logger.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
