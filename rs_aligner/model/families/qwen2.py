"""Qwen2: biases on queries, keys and values."""

from __future__ import annotations

from rs_aligner.model.architecture import QKV_BIAS
from rs_aligner.model.families.llama_like import NO_MLP_BIAS, llama_like

QWEN2 = llama_like("qwen2", "Qwen2", NO_MLP_BIAS, features=frozenset({QKV_BIAS}))
