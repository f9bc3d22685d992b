"""Qwen2: biases on queries, keys and values; later layers see a window, where the config asks for it."""

from __future__ import annotations

from rs_aligner.model.architecture import QKV_BIAS
from rs_aligner.model.families.kinds import Windows, later_layers
from rs_aligner.model.families.llama_like import NO_MLP_BIAS, llama_like

WINDOWS = Windows(later_layers, "use_sliding_window")
ABSENT = {"sliding_window": 4096, "max_window_layers": 28}

QWEN2 = llama_like(
    "qwen2", "Qwen2", NO_MLP_BIAS, features=frozenset({QKV_BIAS}), windows=WINDOWS, absent=ABSENT
)
