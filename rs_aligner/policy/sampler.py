"""A policy that only samples: weights and decoder, without optimizer and gradients.

It takes a quarter of the memory of a policy that is trained, and starts from whatever that one can start
from. `load_model` is what the two share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig

from rs_aligner.files import hugging_face_part
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate, new_network
from rs_aligner.model import huggingface
from rs_aligner.model.architecture import Architecture, read_architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.memory import uses_bf16
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy import checkpoint
from rs_aligner.rollout import Rollout
from rs_aligner.sample_request import SampleRequest


class Loaded(NamedTuple):
    """This rank's part of a model, with its weights.

    `source` is the Hugging Face folder that has its config and tokenizer.
    """

    model: GPTModel
    config: TransformerConfig
    arch: Architecture
    dtype: torch.dtype
    source: Path


def load_model(folder: Path, runtime: Runtime, precision: str, *, sequence_parallel: bool = False) -> Loaded:
    """Build a policy's model and load its weights; every rank calls this.

    Args:
        folder: a Hugging Face folder, or a checkpoint folder of an earlier run.
        runtime: this rank's place.
        precision: `bf16`, `fp32`, or `auto` (bf16 on a GPU).
        sequence_parallel: splits activations along the sequence.

    Raises:
        ValueError: the folder cannot be read, does not fit the layout, or is a reward model.
    """
    source = hugging_face_part(folder)
    arch = read_architecture(source)
    if arch.value_head:
        raise ValueError(f"{folder} is a reward model: it has a value head and cannot generate text")
    dtype = torch.bfloat16 if uses_bf16(precision, runtime.device.type == "cuda") else torch.float32
    config = transformer_config(arch, runtime, dtype=dtype, sequence_parallel=sequence_parallel)
    model = build_model(arch, config, runtime)
    if source == folder:
        huggingface.load_weights(folder, model, arch, runtime)
    else:
        checkpoint.load_weights(folder, model, runtime)
    return Loaded(model, config, arch, dtype, source)


class Sampler:
    """A policy's decoder.

    Args:
        folder: a Hugging Face folder, or a checkpoint folder of an earlier run.
        runtime: this rank's place.
        tokenizer: the folder's.
        seed: of all rollouts.
        precision: `bf16`, `fp32`, or `auto` (bf16 on a GPU).
        kv_cache_bytes: most bytes of the decoder's cache on this rank; None for no bound.
        compiled_decoder: whether the decoder's kernels may be compiled on a CPU.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        tokenizer: Tokenizer,
        *,
        seed: int,
        precision: str = "auto",
        kv_cache_bytes: int | None = None,
        compiled_decoder: bool = True,
    ) -> None:
        loaded = load_model(folder, runtime, precision)
        loaded.model.eval()
        self.runtime, self.tokenizer, self.seed = runtime, tokenizer, seed
        self.kv_cache_bytes = kv_cache_bytes
        allowed = torch.from_numpy(tokenizer.known_ids(loaded.arch.vocab_size))
        self.network = new_network(
            loaded.model, loaded.arch, runtime, compiled=compiled_decoder, allowed=allowed
        )

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        """This replica's share of the rollouts, each as soon as it ends; as `MegatronPolicy.generate`."""
        mine = list(enumerate(request.prompts))[self.runtime.dp_rank :: self.runtime.dp_size]
        return generate(
            self.network,
            self.tokenizer,
            mine,
            request.num_rollouts,
            controls(request),
            seed=self.seed,
            step=request.step,
            wave_size=request.wave_size,
            first_index=request.first_index,
            kv_cache_bytes=self.kv_cache_bytes,
        )

    def gather(self, item: Any) -> list[Any]:
        """The items of all replicas, on every rank."""
        return self.runtime.gather(item)


def controls(request: SampleRequest) -> Controls:
    """The decoder's settings from the config's."""
    sampling, lengths = request.sampling, request.lengths
    return Controls(
        greedy=sampling.use_greedy,
        temperature=sampling.temperature or 1.0,  # 0 is allowed where greedy ignores it
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        end_strings=sampling.end_strings,
        max_length=lengths.max_length,
        min_length=lengths.min_length,
    )
