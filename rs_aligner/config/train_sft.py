"""The config tree of `train_sft.yaml`: supervised training, and a judge of held-out responses if wanted.

Left out on purpose: what all trainings have in common (`training.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import ClassVar

from rs_aligner.config.base import Count, Real, Section, problem
from rs_aligner.config.data import PolicyDataConfig
from rs_aligner.config.judge import JudgeConfig
from rs_aligner.config.layout import TrainerBase
from rs_aligner.config.sampling import LengthParams, SamplingParams
from rs_aligner.config.training import LoopConfig, PolicyModelBase, PolicyTrainConfig

_logger = logging.getLogger("rs_aligner")


class SFTLoopConfig(LoopConfig):
    """How long the supervised training goes on; a step is one optimizer step."""

    stop_at_validation: Real | None = None
    """Stops as soon as the held-out mean score reaches this; needs a judge and validation files."""


class SFTTrainerConfig(TrainerBase):
    """Where and how long to train."""

    sft: SFTLoopConfig = SFTLoopConfig()


class SFTConfig(Section):
    """How validation samples its responses."""

    num_val_samples: Count | None = None
    """The first so many validation prompts; null for all."""
    sampling_params: SamplingParams = SamplingParams(use_greedy=True)
    length_params: LengthParams = LengthParams()


class SFTModelConfig(PolicyModelBase):
    """The policy and its supervised training."""

    data: PolicyDataConfig
    """Train rows are {"prompt", "response"} or chats; validation rows are prompts, as for `train_rs`.

    TRL's, OpenAI's and ShareGPT's rows are read, too (docs/after_a_run.md).
    """
    sft: SFTConfig = SFTConfig()


class TrainSFTConfig(PolicyTrainConfig):
    """Everything that `train_sft.py` reads."""

    lengths_key: ClassVar[str] = "model.sft.length_params"
    trainer: SFTTrainerConfig = SFTTrainerConfig()
    judge: JudgeConfig | None = None
    """Scores the validation responses, in this process; null for no validation by score."""
    model: SFTModelConfig

    @property
    def loop(self) -> SFTLoopConfig:
        """How long the supervised training goes on."""
        return self.trainer.sft

    @property
    def length_params(self) -> LengthParams:
        """Tokens of a held-out response."""
        return self.model.sft.length_params

    @property
    def samples(self) -> bool:
        """Whether the policy samples at all: for a judge that scores held-out responses."""
        return self.judge is not None and self._validates

    def problems(self, key: str) -> Iterator[str]:
        """There are rows to train on, and what a held-out score needs."""
        yield from super().problems(key)
        data = self.model.data.data_prefix
        if not data.train:
            yield 'model.data.data_prefix.train must be set: a file of {"prompt", "response"} rows, or a list'
        if self.judge is None and data.validation:
            _logger.warning("model.data.data_prefix.validation is not looked at without a judge to score by")
        if self.judge is not None and not data.validation:
            yield "model.data.data_prefix.validation must be set: the judge scores responses to its prompts"
        figure = self.exp_manager.checkpoint_callback_params.figure
        if figure == "validation/watched":
            instead = "there is no watched judge here; set it to validation/reward"
            yield problem("exp_manager.checkpoint_callback_params.monitor", figure, instead)
        stop, loop = self.trainer.sft.stop_at_validation, self.trainer.sft
        if stop is not None and (self.judge is None or loop.val_check_interval is None):
            missing = "judge" if self.judge is None else "trainer.sft.val_check_interval"
            yield problem("trainer.sft.stop_at_validation", stop, f"needs {missing}, for a held-out score")
