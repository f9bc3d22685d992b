"""What the scripts share: one way out for errors, the ranks, the loggers, the run's config.

Only this file knows NeMo and Lightning; they are imported where they are needed, behind every check. What is
built from a config without them is in `rs_aligner/commands/build.py`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rs_aligner.commands.build import log_handler, threads
from rs_aligner.config import ConfigError, GenerateConfig, TrainConfig
from rs_aligner.config.common import ExpManagerBase
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.threads import wait_briefly
from rs_aligner.trainers.failures import RanksDiffer

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"


def rank() -> int:
    """Of this process, by what `torchrun` or `srun` says; 0 when started alone."""
    return int(os.environ.get(RANK, os.environ.get("SLURM_PROCID", 0)))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What needs no stack trace ends the process with one clear message.

    Status 2 for what a user has to mend first, 1 for a run that cannot go on, 130 for Ctrl-C.
    """
    try:
        yield
    except (ValueError, ConnectionError) as error:
        sys.exit(_complain(error, 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))
    except (JudgeFailed, RanksDiffer) as error:  # of every rank; one says so
        sys.exit(_complain(error, 1) if rank() == 0 else 1)
    except FloatingPointError as error:
        sys.exit(_complain(error, 1))


def _complain(error: Any, status: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status


def start_ranks(config: TrainConfig | GenerateConfig) -> None:
    """See to it that there are as many ranks as configured.

    Under `torchrun` or `srun` they are there already; started alone on one node with several devices,
    this starts them with the same command line, waits, and ends this process as they ended.

    Raises:
        ConfigError: another number of ranks was started than the config says.
    """
    wanted, per_node = config.world_size, config.trainer.devices
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
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
        sys.exit(_launch(per_node))
    _set_up(config)


def _launch(num_ranks: int) -> int:
    """Run this very command on `num_ranks` ranks of this node; returns 0, or a failed rank's status."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the rank says what is wrong
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(launch, sys.executable)("-u", *sys.argv)
    except ChildFailedError as error:
        return max(abs(error.get_first_failure()[1].exitcode), 1)
    except SignalException as error:  # Ctrl-C or SIGTERM; the ranks have been ended
        return 128 + error.sigval
    return 0


def _set_up(config: TrainConfig | GenerateConfig) -> None:
    """Threads, logging and warnings of this rank; before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads(config).most)
    wait_briefly()
    warnings.filterwarnings("ignore", module=r"(megatron|nemo|lightning|torch|pydantic)\.")
    logger = logging.getLogger("rs_aligner")
    logger.handlers, logger.propagate = [log_handler()], False
    logger.setLevel(logging.INFO if rank() == 0 else logging.ERROR)


def keep_config(config: DictConfig, folder: str) -> None:
    """Write the resolved config into the run's folder, on the first rank."""
    if rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, Path(folder) / "config.yaml", resolve=True)


def loggers(config: ExpManagerBase) -> list[Any]:
    """TensorBoard's and W&B's loggers, set up by NeMo's experiment manager, on the first rank.

    Its checkpoint, resume and time features stay off, and it has `logs/` to itself: whatever files lie
    where it works, it moves away at the next start.
    """
    if rank() != 0 or not (config.create_tensorboard_logger or config.create_wandb_logger):
        return []
    logging.disable(logging.WARNING)  # both tell at length what they are not going to do
    try:
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins.environments import LightningEnvironment
        from nemo.utils.exp_manager import exp_manager

        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            plugins=[LightningEnvironment()],
        )
        wandb = {"name": config.name, "project": config.name, **config.wandb_logger_kwargs}
        exp_manager(
            trainer,
            {
                "explicit_log_dir": str(Path(config.explicit_log_dir) / "logs"),
                "name": config.name,
                "create_tensorboard_logger": config.create_tensorboard_logger,
                "create_wandb_logger": config.create_wandb_logger,
                "wandb_logger_kwargs": wandb,
                "resume_if_exists": False,
                "create_checkpoint_callback": False,
                "create_preemption_callback": False,
                "log_step_timing": False,
                "log_tflops_per_sec_per_gpu": False,
            },
        )
        return list(trainer.loggers)
    finally:
        logging.disable(logging.NOTSET)
