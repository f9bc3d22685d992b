"""The decoding engines that there are, and which of them decodes a policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.allowed import check_allowed
from rs_aligner.generation.decoder import Ahead, CannotDecode, Decoder, Engine, Exports, Offer
from rs_aligner.generation.on_kernels import KERNELS
from rs_aligner.generation.on_torch import TORCH
from rs_aligner.generation.on_vllm import VLLM
from rs_aligner.model.architecture import Architecture

if TYPE_CHECKING:  # slow, and a plan asks which engine it will be without a model
    from megatron.core.models.gpt import GPTModel

    from rs_aligner.model.runtime import Runtime

_logger = logging.getLogger("rs_aligner")

# The fastest first.
ENGINES: list[Engine] = [
    KERNELS,
    TORCH,
    VLLM,
]


class Chosen(NamedTuple):
    """The engine that is going to decode, and why none before it in the list does, by their names."""

    engine: Engine
    others: Mapping[str, str]


def choose(ahead: Ahead, config: GenerationConfig) -> Chosen:
    """The engine that is going to decode a model before it is there, as far as that can be told.

    What cannot: whether the kernels compile, and whether servers answer. Then `new_decoder` finds another.

    Raises:
        ValueError: as `new_decoder`.
    """
    others: dict[str, str] = {}
    for engine in _tried(ahead, config, others):
        if (why := engine.declines(ahead)) is None:
            return Chosen(engine, others)
        others[engine.name] = why
    raise ValueError(_nobody(ahead, config, others))


def _tried(ahead: Ahead, config: GenerationConfig, others: dict[str, str]) -> Iterator[Engine]:
    """The engines that are to be tried, the fastest first; the others, and why they are not."""
    for engine in ENGINES:
        if config.engine == "auto":
            if (why := engine.passed_over(ahead)) is not None:
                others[engine.name] = why
                continue
        elif engine.name != config.engine:
            continue
        yield engine


def _nobody(ahead: Ahead, config: GenerationConfig, others: Mapping[str, str]) -> str:
    if config.endpoints:  # what is wrong is the servers', whatever the model
        return f"generation.engine={config.engine}: {others[config.engine]}"
    wanted = "no engine can" if config.engine == "auto" else f"generation.engine={config.engine} cannot"
    reasons = "; ".join(f"{name}: {why}" for name, why in others.items())
    return f"{wanted} decode this {ahead.arch.family} model here: {reasons}"


def new_decoder(
    model: GPTModel,
    arch: Architecture,
    runtime: Runtime,
    config: GenerationConfig | None = None,
    *,
    allowed: torch.Tensor | None = None,
    exports: Exports | None = None,
) -> Decoder:
    """The engine that the config names, or the first that can decode this model on all ranks.

    Logs which, and why no faster one.

    Every rank must call it.

    Args:
        model: this rank's part of the policy.
        arch: its architecture.
        runtime: of this rank.
        config: the config's section; None for its defaults.
        allowed: bool `[V]`, the ids that may be sampled: those that the tokenizer has; None for all.
        exports: how the weights get to an engine that has weights of its own; None where they cannot.

    Raises:
        ValueError: `allowed` does not fit the model, or allows nothing; or no engine can decode it, or not
            the one that was asked for.
    """
    config = config or GenerationConfig()
    offer = Offer(model, arch, runtime, config, check_allowed(allowed, arch.vocab_size), exports)
    declined: dict[str, str] = {}
    others: dict[str, str] = {}
    for engine in _tried(offer.ahead, config, others):
        decoder, reason = _try(engine, offer)
        if runtime.maximum({"missing": float(decoder is None)})["missing"]:  # ranks must not differ
            declined[engine.name] = reason
        elif decoder is not None:
            slower = next((f", which is slower, since {why}" for why in declined.values()), "")
            if runtime.rank == 0:
                _logger.info("decoder: %s%s", decoder.description, slower)
            return decoder
    raise ValueError(_nobody(offer.ahead, config, declined | others))


def _try(engine: Engine, offer: Offer) -> tuple[Decoder | None, str]:
    """The engine's decoder, and why it cannot be used if it cannot."""
    try:
        return engine.decoder(offer), f"another rank has no {engine.name}"
    except CannotDecode as error:
        return None, str(error)
