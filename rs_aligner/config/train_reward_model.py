"""The config tree of `train_reward_model.yaml`: a reward model learns from pairs of answers.

Keys are those of the other trainings where they mean the same; a row is a pair. Left out on purpose: the
judge's side of a reward model, which is `judge.kwargs` of `serve_reward.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rs_aligner.config.base import problem
from rs_aligner.config.data import DataConfig
from rs_aligner.config.exp_manager import CheckpointParamsBase, ExpManagerBase
from rs_aligner.config.layout import TrainerBase
from rs_aligner.config.training import LoopConfig, ModelBase, TrainConfig


class PairCheckpointParams(CheckpointParamsBase):
    """Which checkpoints of a reward model stay besides the two newest."""

    monitor: Literal["validation/accuracy", "validation/loss"] = "validation/accuracy"
    """The figure of `metrics.jsonl` that ranks checkpoints; with the loss, set `mode: min`."""

    @property
    def figure(self) -> str:
        """The key of `metrics.jsonl` that ranks checkpoints."""
        return self.monitor

    def problems(self, key: str) -> Iterator[str]:
        """The better figure is the one that says so."""
        yield from super().problems(key)
        better = "max" if self.monitor == "validation/accuracy" else "min"
        if self.mode != better:
            yield problem(f"{key}.mode", self.mode, f"should be {better}, since {self.monitor} is monitored")


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
    """Train and validation rows have `chosen` and `rejected`, and the prompt as `prompt` or `messages`.

    TRL's, OpenAI's and ShareGPT's pairs are read, too (docs/after_a_run.md).
    """


class TrainRewardModelConfig(TrainConfig):
    """Everything that `train_reward_model.py` reads."""

    trainer: PairTrainerConfig = PairTrainerConfig()
    exp_manager: PairExpManagerConfig
    model: PairModelConfig

    @property
    def loop(self) -> PairLoopConfig:
        """How long the training goes on."""
        return self.trainer.rm

    def problems(self, key: str) -> Iterator[str]:
        """There are pairs to train on."""
        yield from super().problems(key)
        if not self.model.data.data_prefix.train:
            rows = '{"prompt", "chosen", "rejected"}'
            yield f"model.data.data_prefix.train must be set: a file of {rows} rows, or a list"
