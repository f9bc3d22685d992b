"""The ways in from Python, each loaded when it is asked for; `rs_aligner` has them under the same names."""

from __future__ import annotations

from rs_aligner.api.runs import Run
from rs_aligner.api.sampling import generate
from rs_aligner.api.serving import serve
from rs_aligner.api.training import TrainResult, reward_model, sft, train

__all__ = ["Run", "TrainResult", "generate", "reward_model", "serve", "sft", "train"]
