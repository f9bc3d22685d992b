"""Qwen3: norms on queries and keys; windows as in Qwen2."""

from __future__ import annotations

from rs_aligner.model.architecture import QK_NORM
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, NO_MLP_BIAS, llama_like
from rs_aligner.model.families.qwen2 import ABSENT, WINDOWS

QWEN3 = llama_like(
    "qwen3",
    "Qwen3",
    NO_MLP_BIAS,
    features=frozenset({QK_NORM}),
    switches=ATTENTION_BIAS,
    windows=WINDOWS,
    absent=ABSENT,
)
