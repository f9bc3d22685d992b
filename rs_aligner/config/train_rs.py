"""The config tree of `train_rs.yaml`: a run of rejection sampling, with its judges.

One step of it is `model.rs`, a section with a file of its own (`rs.py`). Left out on purpose: what all
trainings have in common (`training.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rs_aligner.config.base import Count, problem
from rs_aligner.config.layout import TrainerBase
from rs_aligner.config.remote import RemoteRMConfig, WatchedRMConfig
from rs_aligner.config.rs import RSConfig
from rs_aligner.config.sampling import LengthParams
from rs_aligner.config.training import LoopConfig, PolicyModelBase, PolicyTrainConfig


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


class TrainRSConfig(PolicyTrainConfig):
    """Everything that `train_rs.py` reads."""

    lengths_key: ClassVar[str] = "model.rs.length_params"
    trainer: TrainerConfig = TrainerConfig()
    remote_rm: RemoteRMConfig = RemoteRMConfig()
    watched_rm: WatchedRMConfig | None = None
    """A second judge, asked about every rollout and never trained on; the keys are those of `remote_rm`."""
    model: ModelConfig

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

    def problems(self, key: str) -> Iterator[str]:
        """There is something to train on, and what its judges and held-out figures need."""
        yield from super().problems(key)
        yield from self._prompts()
        yield from self._held_out()
        yield from self._judges()

    def _prompts(self) -> Iterator[str]:
        train, offline = self.model.data.data_prefix.train, self.model.rs.offline
        if not train and not offline:
            files = "a file of prompts, or a list of files"
            offline_files = "or model.rs.offline, to train on scored rollouts"
            yield f"model.data.data_prefix.train must be set: {files}; {offline_files}"
        if train and offline:
            nothing = "nothing is sampled with model.rs.offline; set model.data.data_prefix.train=[]"
            yield problem("model.data.data_prefix.train", list(train), nothing)

    def _held_out(self) -> Iterator[str]:
        """What needs a figure of held-out prompts."""
        params, loop = self.exp_manager.checkpoint_callback_params, self.trainer.rs
        params_key = "exp_manager.checkpoint_callback_params"
        if params.figure == "validation/watched" and self.watched_rm is None:
            needs = "needs a watched judge; set watched_rm, or monitor another figure"
            yield problem(f"{params_key}.monitor", params.monitor, needs)
        if loop.patience is None:
            return
        if not self._validates:
            needs = "needs held-out figures; set model.data.data_prefix.validation and val_check_interval"
            yield problem("trainer.rs.patience", loop.patience, needs)
        if params.save_top_k == 0:
            best = "trainer.rs.patience needs the best checkpoint; set it to 1 or more"
            yield problem(f"{params_key}.save_top_k", 0, best)

    def _judges(self) -> Iterator[str]:
        yield from self._components()
        longest = self.model.encoder_seq_length
        for name, remote in (("remote_rm", self.remote_rm), ("watched_rm", self.watched_rm)):
            pad = None if remote is None else remote.pad_to_length
            if pad is not None and longest is not None and pad < longest:
                least = f"should be null or at least {longest} (model.encoder_seq_length)"
                yield problem(f"{name}.pad_to_length", pad, least)

    def _components(self) -> Iterator[str]:
        """What selectors ask of a judge whose parts are known: one in this process, made of others."""
        judge = self.remote_rm.judge
        if not self.remote_rm.in_process or judge is None or not judge.parts:
            return
        for number, selector in enumerate(self.model.rs.selection):
            for key, name in selector.components_read:
                if name != "reward" and not any(f"{name}/".startswith(f"{part}/") for part in judge.parts):
                    known = ", ".join(judge.parts)
                    wrong = f"should be one of remote_rm.judge.parts: {known}; or reward, their weighted sum"
                    yield problem(f"model.rs.selection.{number}.{key}", name, wrong)
