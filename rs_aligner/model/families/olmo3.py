"""OLMo 3: an OLMo 2 of which three layers in four see a window, and the others may have scaled angles."""

from __future__ import annotations

from rs_aligner.model.families.kinds import Windows, but_every_nth
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, NO_MLP_BIAS, llama_like
from rs_aligner.model.families.olmo2 import FEATURES, NORMS
from rs_aligner.model.families.rope import sections

_BASE = ("rope_theta", 500000.0)

OLMO3 = llama_like(
    "olmo3",
    "Olmo3",
    NO_MLP_BIAS,
    features=FEATURES,
    switches=ATTENTION_BIAS,
    windows=Windows(but_every_nth),
    by_kind=sections({"full_attention": _BASE, "sliding_attention": _BASE}),
    absent={"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
    norms=NORMS,
)
