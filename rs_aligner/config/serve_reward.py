"""The config tree of `serve_reward.yaml`: a judge that is served, or looked at without serving it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rs_aligner.config.base import (
    Count,
    Port,
    Positive,
    Real,
    Section,
    Size,
    Text,
    data_problems,
    file_problems,
    problem,
)
from rs_aligner.config.judge import JudgeConfig

_logger = logging.getLogger("rs_aligner")


class InferenceConfig(Section):
    """The reward service."""

    host: Text = "127.0.0.1"
    """Address to listen at, IPv4 or IPv6; the default can be reached from this machine only."""
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

    def problems(self, key: str) -> Iterator[str]:
        """The file of the token is there."""
        yield from file_problems(f"{key}.token_file", self.token_file)


class RewardStandardizationConfig(Section):
    """Rewards as `(reward - mean) / std`."""

    enable: bool = False
    """Whether to standardise; the reward itself is then the component `raw`."""
    mean: Real | None = None
    """What is taken off every reward."""
    std: Positive | None = None
    """What the difference is divided by."""

    def problems(self, key: str) -> Iterator[str]:
        """Both numbers, or neither."""
        for name, value in (("mean", self.mean), ("std", self.std)):
            if self.enable and value is None:
                yield f"{key}.{name} must be set: reward_standardization is enabled"
            if not self.enable and value is not None:
                _logger.warning("%s.%s has no effect: it is not enabled", key, name)


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
    """Data of {"prompt", "response"} and what the judge reads, to check with; null makes some up."""

    def problems(self, key: str) -> Iterator[str]:
        """Files and folders are there, and those of the check have a check."""
        yield from data_problems("check_data", [self.check_data] if self.check_data is not None else [])
        for name, folder in {"tokenizer": self.tokenizer, "check_policy": self.check_policy}.items():
            if folder is not None and not Path(folder).is_dir():
                yield problem(name, folder, "should be the policy's Hugging Face folder")
        for name, value in {"check_policy": self.check_policy, "check_data": self.check_data}.items():
            if value is not None and not self.check:
                yield problem(name, value, "plays a part in a check only; set check=true, or drop it")
