"""Granite: embeddings, residuals, scores and logits are multiplied by numbers of the config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rs_aligner.model.architecture import MLP_BIAS, Scales
from rs_aligner.model.families.base import Config, positive
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, llama_like


def _scales(path: Path, config: Config) -> Scales:
    return Scales(
        embedding=positive(path, config, "embedding_multiplier", 1.0),
        residual=positive(path, config, "residual_multiplier", 1.0),
        logits=1 / positive(path, config, "logits_scaling", 1.0),
        scores=positive(path, config, "attention_multiplier", 1.0),
    )


GRANITE = replace(
    llama_like(
        "granite",
        "Granite",
        switches={**ATTENTION_BIAS, "mlp_bias": frozenset({MLP_BIAS})},
        scales=_scales,
    ),
    has_classifier=False,
)
