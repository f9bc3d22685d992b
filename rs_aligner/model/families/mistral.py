"""Mistral: every layer sees a window, where the config names one."""

from __future__ import annotations

from rs_aligner.model.families.base import Only
from rs_aligner.model.families.kinds import Windows, every_layer
from rs_aligner.model.families.llama_like import NO_ATTENTION_BIAS, NO_MLP_BIAS, llama_like

MISTRAL = llama_like(
    "mistral",
    "Mistral",
    NO_ATTENTION_BIAS,
    NO_MLP_BIAS,
    Only("layer_types", (None,)),
    windows=Windows(every_layer),
    absent={"sliding_window": 4096},
)
