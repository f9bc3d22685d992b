"""What the configs of all trainings have in common.

Left out on purpose: how a policy is sampled (`sampling.py`), and what a training learns from, which is each
command's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from rs_aligner.config.base import Count, NotNegative, Precision, Section, Size, Whole, problem
from rs_aligner.config.data import DataConfig, PolicyDataConfig
from rs_aligner.config.exp_manager import ExpManagerBase, ExpManagerConfig
from rs_aligner.config.keys import walk
from rs_aligner.config.layout import PretrainedCheckpoint, TrainerBase
from rs_aligner.config.optim import LORA_LR, OptimConfig
from rs_aligner.config.peft import PeftConfig
from rs_aligner.config.recompute import RecomputedBase
from rs_aligner.config.sampling import LengthParams


class LoopConfig(Section):
    """How long to train, and how often to look and to save. A step is one pass of the trainer's loop."""

    max_epochs: Count = 1
    """Passes over the training file."""
    max_steps: Whole = -1
    """Steps of the whole run at most; -1 leaves the end to `max_epochs`."""
    val_check_interval: Count | None = 10
    """Steps between validations (one more before the first step and one after the last); null for none."""
    save_interval: Count | None = None
    """Steps between checkpoints (one more at the end); null is every `val_check_interval` steps."""
    gradient_clip_val: NotNegative | None = 1.0
    """Largest norm of the global gradient; null or 0 does not clip."""
    max_bad_steps: Count = 3
    """Optimizer steps in a row with a loss or gradient that is not finite, until the run ends (status 1).

    None of them is applied; their rows are in `bad_steps/` of the run's folder.
    """

    def problems(self, key: str) -> Iterator[str]:
        """-1 is the only number below 1 that means something."""
        if self.max_steps != -1 and self.max_steps < 1:
            known = "should be at least 1, or -1 to leave the end to max_epochs"
            yield problem(f"{key}.max_steps", self.max_steps, known)


class ModelBase(RecomputedBase):
    """A model to be trained: batch sizes, lengths, parallel layout, optimizer."""

    micro_batch_size: Count = 1
    """Rows that pass through the model together on one data-parallel rank, in a line without padding."""
    max_tokens_per_microbatch: Count | None = None
    """Tokens that pass through the model together on one data-parallel rank, at most.

    Then as many whole rows as fit lie in a line, in about equal sums over micro-batches and replicas, and
    `micro_batch_size` does not count; a longer row goes alone. null for so many rows, whatever their lengths.
    """
    global_batch_size: Count = 64
    """Rows of one optimizer step, over all ranks."""
    sequence_parallel: bool = False
    """Splits activations along the sequence over the tensor-parallel ranks."""
    seed: Size = 1234
    """Seed of the order of the data, of sampling and of new weights."""
    precision: Precision | None = None
    """The same as `trainer.precision`, under its other name."""
    peft: PeftConfig = PeftConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig

    @model_validator(mode="before")
    @classmethod
    def _default_rate(cls, given: Any) -> Any:
        """A rate that is not given, or null, is the default of what is trained."""
        if not isinstance(given, Mapping):
            return given
        optim, peft = given.get("optim", {}), given.get("peft", {})
        if not isinstance(optim, Mapping) or not isinstance(peft, Mapping) or optim.get("lr") is not None:
            return given
        rate = LORA_LR if peft.get("peft_scheme") == "lora" else OptimConfig.model_fields["lr"].default
        return {**given, "optim": {**optim, "lr": rate}}

    def problems(self, key: str) -> Iterator[str]:
        """Sequence parallelism splits over tensor-parallel ranks."""
        yield from super().problems(key)
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            needs = f"needs {key}.tensor_model_parallel_size above 1; set it to false"
            yield problem(f"{key}.sequence_parallel", True, needs)
        if self.expert_model_parallel_size > 1 and not self.optim.distributed:
            needs = f"needs {key}.optim.name=distributed_fused_adam"
            yield problem(f"{key}.expert_model_parallel_size", self.expert_model_parallel_size, needs)


class PolicyModelBase(ModelBase):
    """The policy, which learns the responses of rows."""

    data: PolicyDataConfig
    loss_normalization: Literal["sequence", "token"] = "sequence"
    """What counts the same in a batch: every response, or every token of a response."""


class TrainConfig(Section):
    """What all trainings have in common: the layout."""

    trainer: TrainerBase
    exp_manager: ExpManagerBase
    pretrained_checkpoint: PretrainedCheckpoint
    model: ModelBase

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.trainer.world_size

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.model.model_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model."""
        return self.world_size // self.model_parallel_size

    @property
    @abstractmethod
    def loop(self) -> LoopConfig:
        """How long to train."""

    def problems(self, key: str) -> Iterator[str]:
        """The ranks share the model and its batches evenly, and the model fits that."""
        yield from self._layout()
        known = {name for name, _ in walk(type(self))}
        for name in self.exp_manager.allow_changes:
            if name != "all" and name not in known:
                yield problem("exp_manager.allow_changes", name, "should be keys of this config, or all")
        precision = self.trainer.precision
        if self.model.precision not in (None, precision):
            same = f"should be trainer.precision = {precision}, or null"
            yield problem("model.precision", self.model.precision, same)
        yield from self.model.misfits("model", self.pretrained_checkpoint.made)
        if self.pretrained_checkpoint.resize_token_embeddings and self.model.peft.is_lora:
            whole = (
                "should be false with model.peft.peft_scheme=lora, which leaves the embedding as it is, so "
                "new tokens would all stay alike: train once without, or enlarge the model with transformers"
            )
            yield problem("pretrained_checkpoint.resize_token_embeddings", True, whole)

    def _layout(self) -> Iterator[str]:
        model, world = self.model, self.world_size
        tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
        if world % (tp * pp):
            nodes, devices = self.trainer.num_nodes, self.trainer.devices
            yield problem(
                "trainer.devices",
                devices,
                f"{nodes} x {devices} = {world} ranks should be a multiple of "
                "model.tensor_model_parallel_size x model.pipeline_model_parallel_size = "
                f"{tp} x {pp} = {tp * pp}",
            )
            return
        yield from model.shares_of_experts("model", self.data_parallel_size)
        if model.max_tokens_per_microbatch is not None:
            return  # rows are shared out by their tokens
        unit = model.micro_batch_size * self.data_parallel_size
        if model.global_batch_size % unit:
            below = model.global_batch_size // unit * unit
            yield problem(
                "model.global_batch_size",
                model.global_batch_size,
                "should be a multiple of model.micro_batch_size x data-parallel size = "
                f"{model.micro_batch_size} x {self.data_parallel_size} = {unit}, for example {below or unit}",
            )


class PolicyTrainConfig(TrainConfig):
    """What the trainings of a policy have in common: it samples, and needs room for that."""

    lengths_key: ClassVar[str]
    """Where the lengths of a response stand."""
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
        """Most tokens of a prompt, for a model made for `model_positions` tokens."""
        return self.model.max_prompt_length(model_positions, self.length_params)

    def problems(self, key: str) -> Iterator[str]:
        """The policy has room for prompts beside its responses."""
        yield from super().problems(key)
        if self.samples:
            made = self.pretrained_checkpoint.made
            yield from self.model.without_room(self.lengths_key, self.length_params, made)
