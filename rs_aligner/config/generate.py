"""The config tree of `generate.yaml`: sample answers, have them judged, choose one of each prompt.

Keys are those of `train_rs.yaml` where they mean the same. Left out on purpose: everything of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rs_aligner.config.base import (
    Count,
    JudgeSpecialTokens,
    Section,
    Size,
    Text,
    Texts,
    data_problems,
    problem,
)
from rs_aligner.config.data import ReadingConfig
from rs_aligner.config.layout import LayoutBase, PretrainedCheckpoint, TrainerBase
from rs_aligner.config.peft import AdapterConfig
from rs_aligner.config.remote import RemoteRMConfig
from rs_aligner.config.sampling import GenerationConfig, LengthParams, SamplingParams

Choice = Literal["first", "best", "majority", "weighted"]


class GenerateDataConfig(ReadingConfig):
    """What is read, how a row becomes a prompt, and how a response becomes a text."""

    files: Texts
    """Prompt files, as `model.data.data_prefix` has them: a path or a list of paths."""
    num_prompts: Count | None = None
    """The first so many prompts; null for all."""
    judge_special_tokens: JudgeSpecialTokens = False
    """Special tokens that an answer's text has, in the file and for the judge: false, true, or a list."""
    answer_key: Text = "answer"
    """The key of a row's right answer, by which accuracies are counted where rows have it."""

    def problems(self, key: str) -> Iterator[str]:
        """There are prompts."""
        yield from data_problems(f"{key}.files", self.files)
        if not self.files:
            yield f"{key}.files must be set: a file of prompts, or a list of files"


class AnswersConfig(Section):
    """What is sampled for a prompt, and which answer is chosen."""

    num_rollouts_per_prompt: Count = 1
    """Answers sampled for a prompt, N."""
    choose: Choice | None = None
    """The chosen answer; null is `best` with a judge and `first` without.

    `first`: the first one. `best`: the highest score. `majority`: of the most frequent final answer.
    `weighted`: of the final answer whose scores have the highest sum.
    """
    rollout_micro_batch_size: Count = 64
    """Prompts decoded together on one data-parallel rank."""
    sampling_params: SamplingParams = SamplingParams()
    length_params: LengthParams = LengthParams()
    generation: GenerationConfig = GenerationConfig()

    def problems(self, key: str) -> Iterator[str]:
        """The engine samples as it is told."""
        yield from self.generation.sampling_problems(f"{key}.sampling_params", self.sampling_params)


class GenerateModelConfig(LayoutBase):
    """The policy, and what it is asked."""

    seed: Size = 1234
    """Seed of sampling."""
    data: GenerateDataConfig
    peft: AdapterConfig = AdapterConfig()
    answers: AnswersConfig = AnswersConfig()


class GenerateConfig(Section):
    """Everything that `generate.py` reads."""

    trainer: TrainerBase = TrainerBase()
    remote_rm: RemoteRMConfig | None = None
    """The judge, as in `train_rs.yaml`; null for none."""
    pretrained_checkpoint: PretrainedCheckpoint
    output: Text
    """The file to be written, JSON Lines, a row for each prompt."""
    overwrite: bool = False
    """Replaces the file where it exists."""
    model: GenerateModelConfig

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.trainer.world_size

    @property
    def length_params(self) -> LengthParams:
        """Tokens of an answer."""
        return self.model.answers.length_params

    @property
    def choice(self) -> Choice:
        """How an answer is chosen."""
        return self.model.answers.choose or ("first" if self.remote_rm is None else "best")

    def max_prompt_length(self, model_positions: int) -> int:
        """Most tokens of a prompt, for a model made for `model_positions` tokens."""
        return self.model.max_prompt_length(model_positions, self.length_params)

    def problems(self, key: str) -> Iterator[str]:
        """The policy fits its ranks and has room for prompts; judge and file are what they should be."""
        made, parallel = self.pretrained_checkpoint.made, self.model.model_parallel_size
        yield from self.model.misfits("model", made)
        yield from self.model.without_room("model.answers.length_params", self.length_params, made)
        if self.world_size % parallel:
            least = (
                f"{self.world_size} ranks should be a multiple of tensor x pipeline parallelism = {parallel}"
            )
            yield problem("trainer.devices", self.trainer.devices, least)
        else:
            yield from self.model.shares_of_experts("model", self.world_size // parallel)
        choose = self.model.answers.choose
        if choose in ("best", "weighted") and self.remote_rm is None:
            needs = "needs a judge; set remote_rm, e.g. remote_rm.in_process=true remote_rm.judge.name=..."
            yield problem("model.answers.choose", choose, needs)
        output = Path(self.output)
        if output.is_dir():
            yield problem("output", self.output, "is a folder; name a file")
        elif output.exists() and not self.overwrite:
            yield problem("output", self.output, "exists; name another file, or set overwrite=true")
