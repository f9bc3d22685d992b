"""Gemma 3, its text: a Gemma 2 with norms on queries and keys, and other angles where layers see a window."""

from __future__ import annotations

from rs_aligner.model.architecture import QK_NORM
from rs_aligner.model.families.base import Only
from rs_aligner.model.families.gemma2 import ACT, FEATURES, NORMS, ONE_WAY, read_scales
from rs_aligner.model.families.kinds import Windows, but_every_nth
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, NO_MLP_BIAS, llama_like
from rs_aligner.model.families.rope import sections

_BASES = {"full_attention": ("rope_theta", 1000000.0), "sliding_attention": ("rope_local_base_freq", 10000.0)}

GEMMA3 = llama_like(
    "gemma3_text",
    "Gemma3Text",
    NO_MLP_BIAS,
    ONE_WAY,
    Only("attn_logit_softcapping", (None,)),
    features=FEATURES | {QK_NORM},
    switches=ATTENTION_BIAS,
    windows=Windows(but_every_nth),
    by_kind=sections(_BASES),
    scales=read_scales,
    act=ACT,
    norms=NORMS,
    norm="UnitNorm",
    activation="GEGLU",
    absent={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
)
