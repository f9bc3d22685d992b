"""OLMo 2: norms behind attention and MLP, not before them, and over all queries and all keys of a token."""

from __future__ import annotations

from rs_aligner.model.architecture import NORMS_AFTER, WIDE_QK_NORM
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, NO_MLP_BIAS, llama_like

FEATURES = frozenset({NORMS_AFTER, WIDE_QK_NORM})
NORMS = {
    "self_attn_bda.norm.weight": "post_attention_layernorm.weight",
    "mlp_bda.norm.weight": "post_feedforward_layernorm.weight",
}

OLMO2 = llama_like(
    "olmo2",
    "Olmo2",
    NO_MLP_BIAS,
    features=FEATURES,
    switches=ATTENTION_BIAS,
    absent={"rms_norm_eps": 1e-5},
    norms=NORMS,
)
