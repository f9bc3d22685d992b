"""The config tree of `train_reward_model.yaml`: a reward model learns from pairs of answers.

Keys are those of the other trainings where they mean the same; a row is a pair. Left out on purpose: the
judge's side of a reward model, which is `judge.kwargs` of `serve_reward.yaml`.
"""

from __future__ import annotations

from typing import Literal

from rs_aligner.config.common import (
    CheckpointParamsBase,
    DataConfig,
    ExpManagerBase,
    LoopConfig,
    ModelBase,
    TrainerBase,
)
from rs_aligner.config.schema import TrainConfig


class PairCheckpointParams(CheckpointParamsBase):
    """Which checkpoints of a reward model stay besides the newest."""

    monitor: Literal["validation/accuracy", "validation/loss"] = "validation/accuracy"
    """The figure of `metrics.jsonl` that ranks checkpoints; with the loss, set `mode: min`."""

    @property
    def figure(self) -> str:
        """The key of `metrics.jsonl` that ranks checkpoints."""
        return self.monitor


class PairExpManagerConfig(ExpManagerBase):
    """The run's folder, its loggers and its time limit."""

    checkpoint_callback_params: PairCheckpointParams = PairCheckpointParams()


class PairLoopConfig(LoopConfig):
    """How long the training on pairs goes on; a step is one optimizer step."""


class PairTrainerConfig(TrainerBase):
    """Where and how long to train."""

    rm: PairLoopConfig = PairLoopConfig()


class PairModelConfig(ModelBase):
    """The reward model. `micro_batch_size` and `global_batch_size` count pairs, of two rows each."""

    data: DataConfig
    """Train and validation rows have `chosen` and `rejected`, and the prompt as `prompt` or `messages`."""


class TrainRewardModelConfig(TrainConfig):
    """Everything that `train_reward_model.py` reads."""

    trainer: PairTrainerConfig = PairTrainerConfig()
    exp_manager: PairExpManagerConfig
    model: PairModelConfig

    @property
    def loop(self) -> PairLoopConfig:
        """How long the training goes on."""
        return self.trainer.rm
