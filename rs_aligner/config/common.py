"""The parts of the config tree that several commands share.

Key names and defaults are those of NeMo-Aligner where it has the key. Left out on purpose: anything
that the rest of the code would not read. Old keys of that kind are listed in `upstream.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from rs_aligner.config.base import (
    Beta,
    Count,
    Fraction,
    JudgeSpecialTokens,
    NotNegative,
    Positive,
    Precision,
    Real,
    Seconds,
    Section,
    Size,
    Template,
    Text,
    Texts,
    Whole,
)


class TrainerBase(Section):
    """Where a training runs."""

    num_nodes: Count = 1
    """Machines. The world has `num_nodes * devices` ranks."""
    devices: Count = 1
    """Ranks on each machine: GPUs, or processes on a CPU."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` takes the GPU where there is one."""
    precision: Precision = "auto"
    """`bf16` or `32` (read as `fp32`); `auto` is bf16 on a GPU and 32 on a CPU."""
    threads: Count | None = None
    """Threads of each rank on a CPU. Torch uses a number as it is, the decoder's kernels at most so many;
    null is a rank's share of the cores that the process may use, and fewer where the work is small."""
    timeout_minutes: Positive = 30
    """How long a rank waits for the others before it gives up."""


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


class CheckpointParamsBase(Section):
    """Which checkpoints stay besides the newest."""

    save_top_k: Whole = 1
    """How many of the best to keep besides the newest; 0 for none, -1 for all."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller figure is better."""

    @property
    def figure(self) -> str:
        """The key of `metrics.jsonl` that ranks checkpoints."""
        raise NotImplementedError


class CheckpointCallbackParams(CheckpointParamsBase):
    """Which checkpoints of a policy stay besides the newest."""

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
    """Writes the figures of `metrics.jsonl` for TensorBoard, too."""
    create_wandb_logger: bool = False
    """Sends them to Weights & Biases, too (WANDB_MODE=offline keeps them on this machine)."""
    wandb_logger_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the Weights & Biases logger: project, name, tags, ..."""
    resume_if_exists: bool = True
    """Goes on from the last checkpoint in the folder; false refuses a folder that has one."""
    max_time_per_run: Seconds | None = None
    """Saves and stops in good time before this much time has passed, written "DD:HH:MM:SS".

    Seconds once read.
    """
    checkpoint_callback_params: CheckpointParamsBase


class ExpManagerConfig(ExpManagerBase):
    """The run's folder, its loggers and its time limit."""

    checkpoint_callback_params: CheckpointCallbackParams = CheckpointCallbackParams()


class PretrainedCheckpoint(Section):
    """What the training starts from."""

    restore_from_path: Text
    """The model to start from: a Hugging Face folder with safetensors, or a checkpoint of an earlier run."""


class SamplingParams(Section):
    """How the next token is drawn."""

    use_greedy: bool = False
    """Takes the likeliest token; temperature, top_k and top_p then play no part."""
    temperature: NotNegative = 1.0
    """Divides the logits; above 0 unless `use_greedy`."""
    top_k: Size = 0
    """Draws among the k likeliest tokens; 0 for all."""
    top_p: Fraction = 1.0
    """Draws among the likeliest tokens that together have this probability; 1 for all."""
    repetition_penalty: Positive = 1.0
    """Divides positive and multiplies negative logits of tokens seen before; 1 for none."""
    end_strings: Texts = ()
    """A response ends at the first of these texts, as it does at the model's end token."""


class LengthParams(Section):
    """Tokens of a response."""

    max_length: Count = 256
    """Most tokens of a response, the ending token included."""
    min_length: Size = 1
    """No ending token before this many tokens."""


class SchedConfig(Section):
    """The learning rate over the planned optimizer steps of the run.

    What is null follows the run's length, so that no length switches training off; what is set has
    NeMo-Aligner's meaning.
    """

    name: Literal["CosineAnnealing", "constant"] = "CosineAnnealing"
    """`CosineAnnealing` falls from lr to min_lr along a cosine; `constant` stays at lr after the warm-up."""
    warmup_steps: Size | None = None
    """Optimizer steps over which the rate rises to lr; null for a twentieth of those planned.

    None in a run of one. With `constant_steps` set besides, the first step has rate 0, as in NeMo-Aligner.
    """
    constant_steps: Size | None = None
    """Optimizer steps at min_lr at the end of the run (CosineAnnealing only); null for none."""
    min_lr: NotNegative | None = None
    """Where the cosine ends (CosineAnnealing only); null for a tenth of lr."""


class OptimConfig(Section):
    """The optimizer. All names are Adam with decoupled weight decay."""

    name: Literal["distributed_fused_adam", "fused_adam", "adam", "adamw"] = "distributed_fused_adam"
    """`distributed_fused_adam` shards its state over the data-parallel ranks; the others do not."""
    lr: Positive = 1e-5
    """The highest learning rate. It goes with the model's size: docs/defaults.md."""
    weight_decay: NotNegative = 0.1
    """Share of a weight taken off at each step, times the learning rate."""
    decay_norms_and_biases: bool = False
    """Whether weight decay takes norms and biases (tensors of one dimension), too, and not matrices only."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """How much of the running means of gradient and squared gradient stays at each step."""
    eps: Positive = 1e-8
    """Added to the root of the squared gradient's mean."""
    sched: SchedConfig = SchedConfig()

    @property
    def distributed(self) -> bool:
        """Whether the optimizer's state is sharded over the data-parallel ranks."""
        return self.name == "distributed_fused_adam"


class DataPrefix(Section):
    """The data files, JSON Lines."""

    train: Texts
    """Files to train on: a path or a list of paths."""
    validation: Texts = ()
    """Held-out prompts, never trained on: a path or a list of paths; empty for no validation."""


class ReadingConfig(Section):
    """How a row becomes a prompt."""

    seq_length: Count | None = None
    """A prompt of more tokens is left out and counted; null for what `max_length` leaves of the sequence."""
    prompt_template: Template | None = None
    """Makes the prompt, e.g. "Question: {question}\\nAnswer:"; null takes `text` or `messages`."""
    add_bos: bool | None = None
    """Whether a prompt starts with the begin token; null leaves it to the tokenizer and its chat template."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Handed to the chat template, such as {enable_thinking: false}; a row may have some of its own."""


class DataConfig(ReadingConfig):
    """What is read, and how a row becomes a prompt."""

    data_prefix: DataPrefix
    """The data files, e.g. "model.data.data_prefix={train: [a.jsonl], validation: [b.jsonl]}"."""
    overlap: Literal["warn", "drop", "refuse"] = "warn"
    """What becomes of rows to train on whose prompt is a validation prompt, too: `drop` leaves them out.

    Prompts are the same if they differ in case and white space only.
    """


class PolicyDataConfig(DataConfig):
    """What is read, how a row becomes a prompt, and how a response becomes a text."""

    judge_special_tokens: JudgeSpecialTokens = False
    """Special tokens that a response's text shows to the judge: false for none, true for all, or a list."""


class ModelBase(Section):
    """A model to be trained: batch sizes, lengths, parallel layout, optimizer."""

    micro_batch_size: Count = 1
    """Rows that pass through the model together on one data-parallel rank."""
    global_batch_size: Count = 64
    """Rows of one optimizer step, over all ranks."""
    encoder_seq_length: Count | None = None
    """Most tokens of prompt and response together; null for as many as the model was made for."""
    tensor_model_parallel_size: Count = 1
    """Ranks that share each layer."""
    pipeline_model_parallel_size: Count = 1
    """Ranks that share the layers out among them."""
    sequence_parallel: bool = False
    """Splits activations along the sequence over the tensor-parallel ranks."""
    seed: Size = 1234
    """Seed of the order of the data, of sampling and of new weights."""
    precision: Precision | None = None
    """The same as `trainer.precision`, under its other name."""
    optim: OptimConfig = OptimConfig()
    data: DataConfig

    def sequence_length(self, model_positions: int) -> int:
        """Most tokens of prompt and response together, for a model made for `model_positions`."""
        return self.encoder_seq_length or model_positions


class PolicyModelBase(ModelBase):
    """The policy, which learns the responses of rows."""

    data: PolicyDataConfig
    loss_normalization: Literal["sequence", "token"] = "sequence"
    """What counts the same in a batch: every response, or every token of a response."""


JudgeName = Literal[
    "exact_answer",
    "final_answer",
    "choice",
    "regex",
    "length",
    "format",
    "sentiment",
    "huggingface",
    "megatron_reward_model",
]


class JudgeSource(Section):
    """What gives a response its score; exactly one of `function` and `name`."""

    function: Text | None = None
    """A Python function or class: path/to/file.py:name or package.module:name."""
    name: JudgeName | None = None
    """A judge that comes with RS Aligner."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the judge."""
    time_limit: Positive | None = 5
    """Seconds that `function`, `regex` or `final_answer` may take over a row, or it fails; null for no limit.

    A function has a process of its own, with a limit a `regex` too, which is ended when a row takes longer.
    """


class JudgePart(JudgeSource):
    """One of the judges whose weighted sum is the reward."""

    weight: Real = 1.0
    """What its reward is multiplied by."""


class JudgeConfig(JudgeSource):
    """What gives a response its score; exactly one of `function`, `name` and `parts`."""

    parts: dict[str, JudgePart] = Field(default_factory=dict)
    """Judges whose weighted sum is the reward, by the names of their components."""
