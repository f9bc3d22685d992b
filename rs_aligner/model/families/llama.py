"""Llama (2, 3)."""

from __future__ import annotations

from rs_aligner.model.architecture import MLP_BIAS
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, llama_like

LLAMA = llama_like("llama", "Llama", switches={**ATTENTION_BIAS, "mlp_bias": frozenset({MLP_BIAS})})
