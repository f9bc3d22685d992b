"""A policy's decoder, shared by the policy that is trained and by one that only samples.

The latter has weights and decoder without optimizer and gradients: a quarter of the memory. It starts from
whatever the other can start from (`load_model`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig

from rs_aligner.config import GenerationConfig
from rs_aligner.config.recompute import Recompute
from rs_aligner.files import hugging_face_part
from rs_aligner.generation.decoder import Exports
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.lockstep import AGREE_EVERY, StopPoll, go_along
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.memory import uses_bf16
from rs_aligner.model.new_rows import config_changes, enlarged
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.weights import load_into, merge_folder
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


class Decoding(NamedTuple):
    """How a policy is decoded.

    Attributes:
        config: the config's section.
        weights_at: the folder in which an engine with weights of its own gets them; None where it cannot.
    """

    config: GenerationConfig = GenerationConfig()
    weights_at: Path | None = None


PLAIN_DECODING = Decoding()


def load_model(
    folder: Path,
    runtime: Runtime,
    precision: str,
    *,
    sequence_parallel: bool = False,
    recompute: Recompute | None = None,
    num_ids: int = 0,
) -> Loaded:
    """Build a policy's model and load its weights; every rank calls this.

    Args:
        folder: a Hugging Face folder, or a checkpoint folder of an earlier run.
        runtime: of this rank.
        precision: `bf16`, `fp32`, or `auto` (bf16 on a GPU).
        sequence_parallel: splits activations along the sequence.
        recompute: what a backward pass computes again; None: nothing.
        num_ids: of the tokenizer; the embedding has a row for each, whether the folder has or not.

    Raises:
        ValueError: the folder cannot be read, does not fit the layout, or is a reward model.
    """
    source = hugging_face_part(folder)
    arch = enlarged(read_architecture(source), num_ids)
    if arch.value_head:
        raise ValueError(f"{folder} is a reward model: it has a value head and cannot generate text")
    dtype = torch.bfloat16 if uses_bf16(precision, runtime.device.type == "cuda") else torch.float32
    config = transformer_config(
        arch, runtime, dtype=dtype, sequence_parallel=sequence_parallel, recompute=recompute
    )
    model = build_model(arch, config, runtime)
    load_into(model, folder, arch, runtime)
    return Loaded(model, config, arch, dtype, source)


class Sampler:
    """A policy's decoder, and how it is asked. A policy that is trained has one, too.

    Args:
        model: this rank's part of the policy.
        arch: its architecture.
        runtime: of this rank.
        tokenizer: the policy's.
        seed: of all rollouts.
        config: the config's section; None for its defaults.
        exports: how the weights get to an engine that has weights of its own; None where they cannot.

    Attributes:
        weights_seconds: that the last `generate` waited for servers to take the weights; 0 without servers.
    """

    def __init__(
        self,
        model: GPTModel,
        arch: Architecture,
        runtime: Runtime,
        tokenizer: Tokenizer,
        *,
        seed: int,
        config: GenerationConfig | None = None,
        exports: Exports | None = None,
    ) -> None:
        self.model, self.runtime, self.tokenizer, self.seed = model, runtime, tokenizer, seed
        allowed = torch.from_numpy(tokenizer.known_ids(arch.vocab_size))
        self.decoder = new_decoder(model, arch, runtime, config, allowed=allowed, exports=exports)
        self.weights_seconds = 0.0

    def generate(self, request: SampleRequest, policy_version: int = 0) -> Iterator[Rollout]:
        """This replica's share of the rollouts, each as soon as it ends."""
        began = time.monotonic()
        version = self.decoder.prepare(policy_version, now=request.now)
        self.weights_seconds = time.monotonic() - began if self.decoder.is_served else 0.0
        rollouts = generate(
            *(self.decoder, self.tokenizer, request),
            seed=self.seed,
            policy_version=version,
            share=slice(self.runtime.dp_rank, None, self.runtime.dp_size),
            stops=StopPoll(self.runtime, every=1 if self.decoder.is_served else AGREE_EVERY),
        )
        return self._all(rollouts)

    def _all(self, rollouts: Iterator[Rollout]) -> Iterator[Rollout]:
        """The rollouts, and behind them nothing until replicas that share experts have theirs."""
        yield from rollouts
        if not self.decoder.is_served:
            go_along(self.model, self.runtime)

    def gather(self, item: Any) -> list[Any]:
        """The items of all replicas, on every rank."""
        return self.runtime.gather(item)


def load_sampler(
    folder: Path,
    runtime: Runtime,
    tokenizer: Tokenizer,
    *,
    seed: int,
    precision: str = "auto",
    generation: Decoding = PLAIN_DECODING,
    adapter: str | Path | None = None,
) -> Sampler:
    """A policy that only samples; every rank calls this. Arguments as of `load_model` and `Sampler`.

    An adapter folder of `peft`, where one is named, is merged into the weights.
    """
    loaded = load_model(folder, runtime, precision, num_ids=tokenizer.num_ids)
    if adapter is not None:
        merge_folder(loaded.model, loaded.arch, runtime, Path(adapter))
    loaded.model.eval()
    whole = partial(
        huggingface.save_weights,
        model=loaded.model,
        arch=loaded.arch,
        runtime=runtime,
        source=loaded.source,
        changes={**tokenizer.end_token_changes, **config_changes(loaded.arch, loaded.source)},
        as_trained=True,
    )
    return Sampler(
        *(loaded.model, loaded.arch, runtime, tokenizer),
        seed=seed,
        config=generation.config,
        exports=None if generation.weights_at is None else Exports(generation.weights_at, whole),
    )
