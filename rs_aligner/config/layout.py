"""What all commands that load a model have in common: where it runs, what it is, how ranks share it.

Key names and defaults are those of NeMo-Aligner where it has the key. Left out on purpose: anything that the
rest of the code would not read. Old keys of that kind are listed in `upstream.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rs_aligner.config.base import Count, Positive, Precision, Section, Text, problem
from rs_aligner.config.data import ReadingConfig
from rs_aligner.config.sampling import LengthParams
from rs_aligner.files import hugging_face_part
from rs_aligner.model_folder import problem_with

_OWN_WORDS = {
    "gpt2": {
        "n_positions": "max_position_embeddings",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    },
}
"""By `model_type`: sizes that a family calls otherwise."""


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
    enable_progress_bar: bool = True
    """Shows on a terminal how far it is: trainings a live view, `generate` a bar. false: log lines only."""
    timeout_minutes: Positive = 30
    """How long a rank waits for the others before it gives up.

    Where nothing gets on for nine tenths of it, a rank shows the stacks of its threads.
    """

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.num_nodes * self.devices


class PretrainedCheckpoint(Section):
    """What the training starts from."""

    restore_from_path: Text
    """The model to start from: a Hugging Face folder, a checkpoint of an earlier run, or one of Megatron's or
    NeMo's with the model's `config.json` and tokenizer beside it."""
    resize_token_embeddings: bool = False
    """Gives the embedding a row for each token that it lacks, the mean of its rows, up to a multiple of 64.

    false: a tokenizer with more tokens than the embedding has rows is an error.
    """

    def problems(self, key: str) -> Iterator[str]:
        """A model is there."""
        if (why := problem_with(self.restore_from_path)) is not None:
            yield problem(f"{key}.restore_from_path", self.restore_from_path, why)

    @property
    def made(self) -> dict[str, Any]:
        """The model's own config.json; empty where there is no model, or it cannot be read.

        Without the vocabulary where its tokenizer decides how large that will be.
        """
        found = {} if problem_with(self.restore_from_path) else _model_json(self.restore_from_path)
        if self.resize_token_embeddings:
            found.pop("vocab_size", None)
        return found


class LayoutBase(Section):
    """A model's length, and how many ranks share a copy of it."""

    encoder_seq_length: Count | None = None
    """Most tokens of prompt and response together; null for as many as the model was made for."""
    tensor_model_parallel_size: Count = 1
    """Ranks that share each layer."""
    pipeline_model_parallel_size: Count = 1
    """Ranks that share the layers out among them."""
    expert_model_parallel_size: Count = 1
    """Data-parallel ranks that share the experts of each layer out among them, in a mixture of experts."""
    data: ReadingConfig

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    def sequence_length(self, model_positions: int) -> int:
        """Most tokens of prompt and response together, for a model made for `model_positions`."""
        return self.encoder_seq_length or model_positions

    def max_prompt_length(self, model_positions: int, lengths: LengthParams) -> int:
        """Most tokens of a prompt, for a model made for `model_positions` tokens.

        What the response's `max_length` leaves of the sequence, and no more than `data.seq_length`.
        """
        room = self.sequence_length(model_positions) - lengths.max_length
        return min(room, self.data.seq_length or room)

    def misfits(self, key: str, made: Mapping[str, Any]) -> Iterator[str]:
        """What does not fit a model, as far as its config.json, `made`, tells its sizes."""
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        heads, groups = made.get("num_attention_heads"), made.get("num_key_value_heads")
        layers, positions = made.get("num_hidden_layers"), positions_of(made)
        vocabulary = made.get("vocab_size")
        if isinstance(heads, int) and heads % tp:
            divide = f"should divide the policy's {heads} attention heads"
            yield problem(f"{key}.tensor_model_parallel_size", tp, divide)
        elif isinstance(groups, int) and groups % tp:
            divide = f"should divide the policy's {groups} key/value heads"
            yield problem(f"{key}.tensor_model_parallel_size", tp, divide)
        elif isinstance(vocabulary, int) and vocabulary % tp:
            divide = f"should divide the policy's vocabulary, {vocabulary}; {_enlarged(vocabulary, tp)}"
            yield problem(f"{key}.tensor_model_parallel_size", tp, divide)
        if isinstance(layers, int) and layers % pp:
            divide = f"should divide the policy's {layers} layers"
            yield problem(f"{key}.pipeline_model_parallel_size", pp, divide)
        if made and (experts := _experts(made)) % self.expert_model_parallel_size:
            some = (
                f"divide the policy's {experts} experts" if experts > 1 else "be 1: the policy has no experts"
            )
            yield problem(
                f"{key}.expert_model_parallel_size", self.expert_model_parallel_size, f"should {some}"
            )
        longest = self.encoder_seq_length
        if positions is not None and longest is not None and longest > positions:
            yield problem(f"{key}.encoder_seq_length", longest, _made_for(made, positions))

    def shares_of_experts(self, key: str, replicas: int) -> Iterator[str]:
        """What is wrong if so many replicas cannot share experts out."""
        if replicas % (shares := self.expert_model_parallel_size):
            divide = f"should divide the data-parallel size, {replicas}: replicas share experts out"
            yield problem(f"{key}.expert_model_parallel_size", shares, divide)

    def without_room(self, key: str, lengths: LengthParams, made: Mapping[str, Any]) -> Iterator[str]:
        """What is wrong if responses, whose lengths stand at `key`, leave no room for a prompt."""
        positions = positions_of(made)
        if positions is None or lengths.max_length < self.sequence_length(positions):
            return
        most = f"prompt and response together have at most {self.sequence_length(positions)} tokens"
        yield problem(f"{key}.max_length", lengths.max_length, f"should leave room for the prompt: {most}")


def _enlarged(vocabulary: int, parts: int) -> str:
    """How a vocabulary becomes one that so many ranks can share."""
    multiple = math.lcm(64, parts)
    rows = -(-vocabulary // multiple) * multiple
    return (
        f"transformers enlarges it, once: model.resize_token_embeddings({rows}), model.save_pretrained(...)"
    )


def model_positions(folder: str) -> int | None:
    """The number of positions that the policy in `folder` was made for, if its config.json tells."""
    return positions_of(_model_json(folder))


def positions_of(made: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model is used for, if its config.json, `made`, tells.

    As many tokens as it has positions; with YaRN at least `factor` times those before it. Qwen2.5 and Qwen3
    come without YaRN, and their readme adds it and leaves the number of positions alone. How far it goes: the
    scale s of Peng et al., "YaRN" (2023), arXiv 2309.00071. With LongRoPE those before it: beyond them all
    frequencies of a sequence are others.
    """
    positions, rope, kind = made.get("max_position_embeddings"), rope_of(made), rope_type_of(made)
    if not isinstance(positions, int) or kind not in ("yarn", "longrope"):
        return positions if isinstance(positions, int) else None
    key = "original_max_position_embeddings"
    factor, original = rope.get("factor"), made.get(key) or rope.get(key) or positions
    if kind == "longrope" and isinstance(original, int):
        return min(positions, original)
    if not isinstance(factor, int | float) or not isinstance(original, int) or not factor < math.inf:
        return positions  # whoever reads the model refuses it
    return max(positions, int(factor * original))


def _experts(made: Mapping[str, Any]) -> int:
    """Experts of a layer, by either of their names in a config.json; 1 where none are named."""
    found = made.get("num_local_experts") or made.get("num_experts")
    return found if isinstance(found, int) else 1


def rope_of(made: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config.json says of rotary positions: `rope_scaling`; `rope_parameters` since transformers 5."""
    found = made.get("rope_scaling") or made.get("rope_parameters")
    return found if isinstance(found, Mapping) else {}


def rope_type_of(made: Mapping[str, Any]) -> Any:
    """The kind of rotary scaling that a config.json names, in either spelling."""
    rope = rope_of(made)
    return rope.get("rope_type", rope.get("type", "default"))


def _made_for(made: Mapping[str, Any], positions: int) -> str:
    most = f"the policy was made for at most {positions} positions"
    if (kind := rope_type_of(made)) in ("dynamic", "longrope"):
        most += f", beyond which its {kind} rope_type makes another model for each length"
    return most


def _model_json(folder: str) -> dict[str, Any]:
    """The policy's config.json, or nothing where it cannot be read: loading it tells what is wrong."""
    try:
        content = json.loads((hugging_face_part(Path(folder)) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return in_common_words(content) if isinstance(content, dict) else {}


def in_common_words(made: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json whose sizes have the names that most families give them, beside their own."""
    names = _OWN_WORDS.get(str(made.get("model_type")), {})
    return {**{common: made[own] for own, common in names.items() if own in made}, **made}
