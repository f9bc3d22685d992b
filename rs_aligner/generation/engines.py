"""The decoding engines that there are, and which of them decodes a policy."""

from __future__ import annotations

import logging

import torch
from megatron.core.models.gpt import GPTModel

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.allowed import check_allowed
from rs_aligner.generation.decoder import CannotDecode, Decoder, Engine, Exports, Offer
from rs_aligner.generation.on_kernels import KERNELS
from rs_aligner.generation.on_torch import TORCH
from rs_aligner.generation.on_vllm import VLLM
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.runtime import Runtime

_logger = logging.getLogger("rs_aligner")

# The fastest first.
ENGINES: list[Engine] = [
    KERNELS,
    TORCH,
    VLLM,
]


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
    for engine in ENGINES:
        if not (engine.is_meant(offer) if config.engine == "auto" else engine.name == config.engine):
            continue
        decoder, reason = _try(engine, offer)
        if runtime.maximum({"missing": float(decoder is None)})["missing"]:  # ranks must not differ
            declined[engine.name] = reason
        elif decoder is not None:
            slower = next((f", which is slower, since {why}" for why in declined.values()), "")
            if runtime.rank == 0:
                _logger.info("decoder: %s%s", decoder.description, slower)
            return decoder
    reasons = "; ".join(f"{name}: {why}" for name, why in declined.items()) or "none is meant for it"
    wanted = "no engine can" if config.engine == "auto" else f"generation.engine={config.engine} cannot"
    raise ValueError(f"{wanted} decode this {arch.family} model here: {reasons}")


def _try(engine: Engine, offer: Offer) -> tuple[Decoder | None, str]:
    """The engine's decoder, and why it cannot be used if it cannot."""
    try:
        return engine.new(offer), f"another rank has no {engine.name}"
    except CannotDecode as error:
        return None, str(error)
