"""The typed config: read it with `load_config`, before anything slow is imported.

Plain: pydantic and OmegaConf, no torch, no Hydra.
"""

from rs_aligner.config.base import ConfigError
from rs_aligner.config.data import DataConfig
from rs_aligner.config.epoch_plan import epoch_plan, num_epoch_steps
from rs_aligner.config.exp_manager import ExpManagerBase, ExpManagerConfig
from rs_aligner.config.generate import GenerateConfig
from rs_aligner.config.judge import JudgeConfig, JudgePart, JudgeSource
from rs_aligner.config.layout import model_positions
from rs_aligner.config.load import load_config, open_overrides, register_resolvers
from rs_aligner.config.objective import AnchorConfig, ObjectiveConfig, num_anchors
from rs_aligner.config.optim import OptimConfig, SchedConfig
from rs_aligner.config.plan import num_optimizer_steps, num_steps, plan, schedule_steps, steps_per_epoch
from rs_aligner.config.pools import PoolConfig, UntilConfig
from rs_aligner.config.remote import EndpointConfig, RemoteRMConfig
from rs_aligner.config.rs import RSConfig
from rs_aligner.config.sampling import GenerationConfig, LengthParams, SamplingParams
from rs_aligner.config.serve_reward import InferenceConfig, ServeRewardConfig
from rs_aligner.config.serve_rollouts import ServeRolloutsConfig
from rs_aligner.config.train_reward_model import PairModelConfig, TrainRewardModelConfig
from rs_aligner.config.train_rs import ModelConfig, RSLoopConfig, TrainerConfig, TrainRSConfig
from rs_aligner.config.train_sft import SFTConfig, TrainSFTConfig
from rs_aligner.config.training import ModelBase, PolicyModelBase, TrainConfig
from rs_aligner.config.trlx import RFTConfig

__all__ = [
    "AnchorConfig",
    "ConfigError",
    "DataConfig",
    "EndpointConfig",
    "ExpManagerBase",
    "ExpManagerConfig",
    "GenerateConfig",
    "GenerationConfig",
    "InferenceConfig",
    "JudgeConfig",
    "JudgePart",
    "JudgeSource",
    "LengthParams",
    "ModelBase",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PairModelConfig",
    "PolicyModelBase",
    "PoolConfig",
    "RFTConfig",
    "RSConfig",
    "RSLoopConfig",
    "RemoteRMConfig",
    "SFTConfig",
    "SamplingParams",
    "SchedConfig",
    "ServeRewardConfig",
    "ServeRolloutsConfig",
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
