"""Llama (2, 3)."""

from __future__ import annotations

from rs_aligner.model.families.llama_like import NO_ATTENTION_BIAS, llama_like

LLAMA = llama_like("llama", "Llama", NO_ATTENTION_BIAS)
