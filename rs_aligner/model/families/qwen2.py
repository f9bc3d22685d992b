"""Qwen2: biases on queries, keys and values."""

from __future__ import annotations

from rs_aligner.model.architecture import QKV_BIAS
from rs_aligner.model.families.llama_like import llama_like

QWEN2 = llama_like("qwen2", "Qwen2", features=frozenset({QKV_BIAS}))
