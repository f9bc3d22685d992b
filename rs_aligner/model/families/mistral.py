"""Mistral, for sequences within its sliding window."""

from __future__ import annotations

from rs_aligner.model.families.llama_like import NO_ATTENTION_BIAS, NO_MLP_BIAS, llama_like

MISTRAL = llama_like("mistral", "Mistral", NO_ATTENTION_BIAS, NO_MLP_BIAS)
