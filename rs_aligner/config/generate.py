"""The config tree of `generate.yaml`: sample answers, have them judged, choose one of each prompt.

Keys are those of `train_rs.yaml` where they mean the same. Left out on purpose: everything of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rs_aligner.config.base import Count, JudgeSpecialTokens, Section, Size, Text, Texts, problem
from rs_aligner.config.common import (
    LengthParams,
    PretrainedCheckpoint,
    ReadingConfig,
    SamplingParams,
    TrainerBase,
)
from rs_aligner.config.remote import RemoteRMConfig
from rs_aligner.config.rs import GenerationConfig

Choice = Literal["first", "best", "majority", "weighted"]


class GenerateDataConfig(ReadingConfig):
    """What is read, how a row becomes a prompt, and how a response becomes a text."""

    files: Texts
    """Prompt files, JSON Lines: a path or a list of paths."""
    num_prompts: Count | None = None
    """The first so many prompts; null for all."""
    judge_special_tokens: JudgeSpecialTokens = False
    """Special tokens that an answer's text has, in the file and for the judge: false, true, or a list."""
    answer_key: Text = "answer"
    """The key of a row's right answer, by which accuracies are counted where rows have it."""


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


class GenerateModelConfig(Section):
    """The policy, and what it is asked."""

    encoder_seq_length: Count | None = None
    """Most tokens of prompt and answer together; null for as many as the model was made for."""
    tensor_model_parallel_size: Count = 1
    """Ranks that share each layer."""
    pipeline_model_parallel_size: Count = 1
    """Ranks that share the layers out among them."""
    seed: Size = 1234
    """Seed of sampling."""
    data: GenerateDataConfig
    answers: AnswersConfig = AnswersConfig()

    def sequence_length(self, model_positions: int) -> int:
        """Most tokens of prompt and answer together, for a model made for `model_positions`."""
        return self.encoder_seq_length or model_positions


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
        return self.trainer.num_nodes * self.trainer.devices

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
        room = self.model.sequence_length(model_positions) - self.length_params.max_length
        return min(room, self.model.data.seq_length or room)


def check_generate(config: GenerateConfig) -> Iterator[str]:
    """What relates several keys, a line for each problem."""
    model, world = config.model, config.world_size
    parallel = model.tensor_model_parallel_size * model.pipeline_model_parallel_size
    if world % parallel:
        least = f"{world} ranks should be a multiple of tensor x pipeline parallelism = {parallel}"
        yield problem("trainer.devices", config.trainer.devices, least)
    if not model.data.files:
        yield "model.data.files must be set: a file of prompts, or a list of files"
    if model.answers.choose in ("best", "weighted") and config.remote_rm is None:
        needs = "needs a judge; set remote_rm, e.g. remote_rm.in_process=true remote_rm.judge.name=..."
        yield problem("model.answers.choose", model.answers.choose, needs)
    output = Path(config.output)
    if output.is_dir():
        yield problem("output", config.output, "is a folder; name a file")
    elif output.exists() and not config.overwrite:
        yield problem("output", config.output, "exists; name another file, or set overwrite=true")
