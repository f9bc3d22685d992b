"""Mistral, without a sliding window."""

from __future__ import annotations

from rs_aligner.model.families.base import Only
from rs_aligner.model.families.llama_like import NO_ATTENTION_BIAS, llama_like

MISTRAL = llama_like("mistral", "Mistral", Only("sliding_window", (None,)), NO_ATTENTION_BIAS)
