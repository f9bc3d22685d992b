"""Sinks of a run's figures besides `metrics.jsonl`: TensorBoard's and W&B's, as NeMo makes them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rs_aligner.cli.ranks import rank
from rs_aligner.config import ExpManagerBase


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
