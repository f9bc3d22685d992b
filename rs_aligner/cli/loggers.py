"""Sinks of a run's figures besides `metrics.jsonl`: TensorBoard by torch's writer, W&B as NeMo makes it.

NeMo's experiment manager and Lightning cost seconds to import, so they are imported only where a user asks
for what only they do. Left out on purpose: texts of rollouts, which stay in the run's folder.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from rs_aligner.cli.ranks import rank
from rs_aligner.config import ExpManagerBase
from rs_aligner.record.tensorboard import TensorBoard

if TYPE_CHECKING:
    from rs_aligner.record.run import Logger


def loggers(config: ExpManagerBase) -> list[Logger]:
    """TensorBoard's and W&B's loggers, on the first rank."""
    if rank() != 0:
        return []
    logs = Path(config.explicit_log_dir) / "logs"
    found: list[Logger] = []
    if config.create_tensorboard_logger:
        found.append(TensorBoard(logs))
    if config.create_wandb_logger:
        found += _wandb(config, logs / "wandb")
    return found


def _wandb(config: ExpManagerBase, folder: Path) -> list[Logger]:
    """W&B's logger, set up by NeMo's experiment manager.

    Its checkpoint, resume and time features stay off, and it has the folder to itself: whatever files lie
    where it works, it moves away at the next start.
    """
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
                "explicit_log_dir": str(folder),
                "name": config.name,
                "create_tensorboard_logger": False,
                "create_wandb_logger": True,
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
