"""Three of the config trees: `train_rs.yaml`, `serve_reward.yaml` and `train_sft.yaml`.

Each root is one command's whole config, with defaults that run in one process on a CPU. The fourth,
`train_reward_model.yaml`, is in `reward_model.py`. Read one
through `load_config`, which also checks what relates several keys; see `check.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from rs_aligner.config.base import Count, Port, Positive, Real, Section, Size, Text
from rs_aligner.config.common import (
    ExpManagerBase,
    ExpManagerConfig,
    JudgeConfig,
    LengthParams,
    LoopConfig,
    ModelBase,
    PolicyDataConfig,
    PolicyModelBase,
    PretrainedCheckpoint,
    SamplingParams,
    TrainerBase,
)
from rs_aligner.config.remote import RemoteRMConfig
from rs_aligner.config.rs import RSConfig


class RSLoopConfig(LoopConfig):
    """How long the rejection sampling goes on."""

    patience: Count | None = None
    """Stops after so many validations without a better figure; `final/` then holds the best. Null: no stop.

    The figure is `exp_manager.checkpoint_callback_params.monitor`.
    """


class TrainerConfig(TrainerBase):
    """Where and how long to train."""

    rs: RSLoopConfig = RSLoopConfig()


class ModelConfig(PolicyModelBase):
    """The policy and the step it learns by."""

    rs: RSConfig = RSConfig()


class TrainConfig(Section):
    """What all trainings have in common: the layout."""

    trainer: TrainerBase
    exp_manager: ExpManagerBase
    pretrained_checkpoint: PretrainedCheckpoint
    model: ModelBase

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.trainer.num_nodes * self.trainer.devices

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.model.tensor_model_parallel_size * self.model.pipeline_model_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model."""
        return self.world_size // self.model_parallel_size

    @property
    @abstractmethod
    def loop(self) -> LoopConfig:
        """How long to train."""


class _SampleConfig(TrainConfig):
    """What the trainings of a policy have in common: it samples, and needs room for that."""

    exp_manager: ExpManagerConfig
    model: PolicyModelBase

    @property
    @abstractmethod
    def length_params(self) -> LengthParams:
        """Tokens of a response that the policy samples."""

    @property
    @abstractmethod
    def samples(self) -> bool:
        """Whether the policy samples at all, so that there has to be room for its responses."""

    @property
    def _validates(self) -> bool:
        """Whether held-out prompts are looked at."""
        return self.loop.val_check_interval is not None and bool(self.model.data.data_prefix.validation)

    def max_prompt_length(self, model_positions: int) -> int:
        """Most tokens of a prompt, for a model made for `model_positions` tokens.

        What `length_params.max_length` leaves of the sequence, and no more than `model.data.seq_length`.
        """
        room = self.model.sequence_length(model_positions) - self.length_params.max_length
        return min(room, self.model.data.seq_length or room)


class TrainRSConfig(_SampleConfig):
    """Everything that `train_rs.py` reads."""

    trainer: TrainerConfig = TrainerConfig()
    remote_rm: RemoteRMConfig = RemoteRMConfig()
    watched_rm: RemoteRMConfig | None = None
    """A second judge, asked about every rollout and never trained on; the keys are those of `remote_rm`.

    Its `on_failure` is `drop` unless it is set: a run does not wait long for what it only watches.
    """
    model: ModelConfig

    @field_validator("watched_rm", mode="before")
    @classmethod
    def _drop_what_is_not_watched(cls, value: Any) -> Any:
        return {"on_failure": "drop", **value} if isinstance(value, Mapping) else value

    @property
    def loop(self) -> RSLoopConfig:
        """How long the rejection sampling goes on."""
        return self.trainer.rs

    @property
    def length_params(self) -> LengthParams:
        """Tokens of a response."""
        return self.model.rs.length_params

    @property
    def samples(self) -> bool:
        """Whether the policy samples at all: not where rollouts are read and nothing is held out."""
        return not self.model.rs.offline or self._validates


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
    """Train rows are {"prompt", "response"} or chats; validation rows are prompts, as for `train_rs`."""
    sft: SFTConfig = SFTConfig()


class TrainSFTConfig(_SampleConfig):
    """Everything that `train_sft.py` reads."""

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


class InferenceConfig(Section):
    """The reward service."""

    host: Text = "127.0.0.1"
    """Address to listen at; the default can be reached from this machine only."""
    port: Port = 5555
    """Port of the HTTP service."""
    model_name: Text = "reward_model"
    """The name that clients ask for."""
    max_queue_delay_microseconds: Size = 2000
    """How long a request may wait to be merged with others."""
    inference_micro_batch_size: Count = 64
    """Rows of one call of the judge at most."""
    max_request_bytes: Count = 64 * 1024 * 1024
    """Bytes of one request at most."""
    token_file: Text | None = None
    """File with the access token that clients must have; null takes the variable RS_ALIGNER_JUDGE_TOKEN.

    An address that other machines can reach needs one.
    """
    metrics_host: Text = "127.0.0.1"
    """Address at which `/metrics` is shown; figures only, and no token."""
    metrics_port: Annotated[Size, Field(le=65535)] | None = 0
    """Port of `/metrics`; 0 takes a free one, which the server prints; null for no metrics."""


class RewardStandardizationConfig(Section):
    """Rewards as `(reward - mean) / std`."""

    enable: bool = False
    """Whether to standardise; the reward itself is then the component `raw`."""
    mean: Real | None = None
    """What is taken off every reward."""
    std: Positive | None = None
    """What the difference is divided by."""


class JudgeModelConfig(Section):
    """The reward model, and what is made of its rewards."""

    reward_standardization: RewardStandardizationConfig = RewardStandardizationConfig()


class ServeRewardConfig(Section):
    """Everything that `serve_reward.py` reads."""

    inference: InferenceConfig = InferenceConfig()
    judge: JudgeConfig = Field(default_factory=JudgeConfig)
    model: JudgeModelConfig = JudgeModelConfig()
    tokenizer: Text | None = None
    """Hugging Face folder that turns token ids into text, for a text judge that is sent token ids."""
    log_dir: Text | None = None
    """Folder of the server's own log; null prints warnings only."""
    check: bool = False
    """Examines the judge and reports, instead of serving it."""
    check_policy: Text | None = None
    """Hugging Face folder of a policy whose tokenizer and chat template are compared with the judge's."""
    check_data: Text | None = None
    """JSON Lines of {"prompt", "response"} and what the judge reads, to check with; null makes some up."""
