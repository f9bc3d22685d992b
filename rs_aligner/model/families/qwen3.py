"""Qwen3: norms on queries and keys."""

from __future__ import annotations

from rs_aligner.model.architecture import QK_NORM
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, NO_MLP_BIAS, llama_like

QWEN3 = llama_like("qwen3", "Qwen3", NO_MLP_BIAS, features=frozenset({QK_NORM}), switches=ATTENTION_BIAS)
