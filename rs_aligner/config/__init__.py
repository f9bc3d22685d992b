"""The typed config: read it with `load_config`, before anything slow is imported.

Plain: pydantic and OmegaConf, no torch, no Hydra.
"""

from rs_aligner.config.base import ConfigError
from rs_aligner.config.check import model_positions
from rs_aligner.config.common import (
    DataConfig,
    ExpManagerConfig,
    JudgeConfig,
    JudgePart,
    JudgeSource,
    LengthParams,
    OptimConfig,
    SamplingParams,
    SchedConfig,
)
from rs_aligner.config.epoch_plan import epoch_plan, num_epoch_steps
from rs_aligner.config.generate import GenerateConfig
from rs_aligner.config.load import load_config, open_overrides, register_resolvers
from rs_aligner.config.objective import AnchorConfig, ObjectiveConfig, num_anchors
from rs_aligner.config.plan import num_optimizer_steps, num_steps, plan, schedule_steps, steps_per_epoch
from rs_aligner.config.pools import PoolConfig, RFTConfig, UntilConfig
from rs_aligner.config.remote import EndpointConfig, RemoteRMConfig
from rs_aligner.config.reward_model import TrainRewardModelConfig
from rs_aligner.config.rs import GenerationConfig, RSConfig
from rs_aligner.config.schema import (
    InferenceConfig,
    ModelConfig,
    RSLoopConfig,
    ServeRewardConfig,
    SFTConfig,
    TrainConfig,
    TrainerConfig,
    TrainRSConfig,
    TrainSFTConfig,
)

__all__ = [
    "AnchorConfig",
    "ConfigError",
    "DataConfig",
    "EndpointConfig",
    "ExpManagerConfig",
    "GenerateConfig",
    "GenerationConfig",
    "InferenceConfig",
    "JudgeConfig",
    "JudgePart",
    "JudgeSource",
    "LengthParams",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PoolConfig",
    "RFTConfig",
    "RSConfig",
    "RSLoopConfig",
    "RemoteRMConfig",
    "SFTConfig",
    "SamplingParams",
    "SchedConfig",
    "ServeRewardConfig",
    "TrainConfig",
    "TrainRSConfig",
    "TrainRewardModelConfig",
    "TrainSFTConfig",
    "TrainerConfig",
    "UntilConfig",
    "epoch_plan",
    "load_config",
    "model_positions",
    "num_anchors",
    "num_epoch_steps",
    "num_optimizer_steps",
    "num_steps",
    "open_overrides",
    "plan",
    "register_resolvers",
    "schedule_steps",
    "steps_per_epoch",
]
