"""`exp_manager`: a run's folder, its loggers, its time limit, and which of its checkpoints stay.

Left out on purpose: the figure that ranks a reward model's checkpoints (`train_reward_model.py`).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rs_aligner.config.base import Positive, Seconds, Section, Text, Texts, Whole, problem


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return package in sys.modules or importlib.util.find_spec(package) is not None


class CheckpointParamsBase(Section):
    """Which checkpoints stay besides the two newest."""

    save_top_k: Whole = 1
    """How many of the best to keep besides the two newest; 0 for none, -1 for all."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller figure is better."""

    @property
    def figure(self) -> str:
        """The key of `metrics.jsonl` that ranks checkpoints."""
        raise NotImplementedError

    def problems(self, key: str) -> Iterator[str]:
        """-1 is the only number below 0 that means something."""
        if self.save_top_k < -1:
            known = "should be -1 (keep all), 0 (only the two newest) or more"
            yield problem(f"{key}.save_top_k", self.save_top_k, known)


class CheckpointCallbackParams(CheckpointParamsBase):
    """Which checkpoints of a policy stay besides the two newest."""

    monitor: Literal["val_global_rewards", "validation/reward", "validation/watched"] = "val_global_rewards"
    """The figure of `metrics.jsonl` that ranks checkpoints; `val_global_rewards` is `validation/reward`.

    `validation/watched` is the held-out score of the watched judge.
    """

    @property
    def figure(self) -> str:
        """The key of `metrics.jsonl` that ranks checkpoints."""
        return "validation/reward" if self.monitor == "val_global_rewards" else self.monitor


class ExpManagerBase(Section):
    """The run's folder, its loggers and its time limit."""

    explicit_log_dir: Text
    """The run's folder, for example runs/first; it is made where it does not exist."""
    name: Text = "rs_aligner"
    """The run's name in the loggers."""
    create_tensorboard_logger: bool = True
    """Writes figures, histograms, settings and a few rollouts for TensorBoard, into `logs/`."""
    create_wandb_logger: bool = False
    """Sends figures, histograms and settings to Weights & Biases (WANDB_MODE=offline keeps them here)."""
    wandb_logger_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the Weights & Biases logger: project, name, tags, ..."""
    create_mlflow_logger: bool = False
    """The same for MLflow; without a `tracking_uri`, in `logs/mlflow/`."""
    mlflow_logger_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the MLflow logger: tracking_uri, experiment_name, run_name, tags, ..."""
    create_trackio_logger: bool = False
    """The same for trackio."""
    trackio_logger_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to trackio's `init`: project, name, space_id, ..."""
    report: bool = True
    """Writes report.html into the run's folder: after validations, and at the end of the run.

    See docs/report.md.
    """
    resume_if_exists: bool = True
    """Goes on from the last checkpoint in the folder; false refuses a folder that has one."""
    allow_changes: Texts = ()
    """Keys that may have another value than the run in the folder had, such as [model.optim.lr].

    Without it, settings that would mix two runs are refused. A section stands for all its keys, `all` for
    everything. See docs/continuation.md.
    """
    max_time_per_run: Seconds | None = None
    """Saves and stops (status 75) in good time before the process has run for so long.

    Written "DD:HH:MM:SS", seconds once read. In a Slurm job that says when it ends, that is a limit, too.
    """
    stop_within: Positive = 30
    """Seconds between SIGTERM and the supervisor's SIGKILL: no save is begun that would take longer.

    30 is Slurm's KillWait, and Kubernetes' grace period.
    """
    checkpoint_callback_params: CheckpointParamsBase

    def problems(self, key: str) -> Iterator[str]:
        """The folder is not a file, and the packages of the loggers are there."""
        folder = Path(self.explicit_log_dir)
        if folder.exists() and not folder.is_dir():
            yield problem(f"{key}.explicit_log_dir", self.explicit_log_dir, "is a file; name a folder")
        for package in ("wandb", "mlflow", "trackio"):
            asked = f"create_{package}_logger"
            if getattr(self, asked) and not is_installed(package):
                missing = f"the package {package} is not installed: pip install {package}"
                yield problem(f"{key}.{asked}", True, missing)


class ExpManagerConfig(ExpManagerBase):
    """The run's folder, its loggers and its time limit, of a policy, which samples."""

    send_rollout_texts: bool = False
    """W&B, MLflow and trackio also get the texts of a few rollouts of each step.

    TensorBoard's files are in the run's folder, as the rollouts are, and have them in any case.
    """
    checkpoint_callback_params: CheckpointCallbackParams = CheckpointCallbackParams()
