"""Gemma 2: norms on both sides of attention and MLP, windows in every other layer, caps, GEGLU."""

from __future__ import annotations

from pathlib import Path

from rs_aligner.model.architecture import GEGLU, NORMS_AFTER, UNIT_NORMS, Scales
from rs_aligner.model.families.base import Config, Only, positive
from rs_aligner.model.families.kinds import Windows, alternate_layers
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, NO_MLP_BIAS, llama_like

FEATURES = frozenset({NORMS_AFTER, UNIT_NORMS, GEGLU})
ACT = ("hidden_activation", "gelu_pytorch_tanh")
ONE_WAY = Only("use_bidirectional_attention", (None, False))
NORMS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attn_bda.norm.weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "pre_feedforward_layernorm.weight",
    "mlp_bda.norm.weight": "post_feedforward_layernorm.weight",
}


def read_scales(path: Path, config: Config) -> Scales:
    """What Gemma 2 and 3 multiply by, and keep scores and logits below."""
    caps = [
        None if config.get(key) is None else positive(path, config, key, 1.0)
        for key in ("attn_logit_softcapping", "final_logit_softcapping")
    ]
    return Scales(
        embedding=config["hidden_size"] ** 0.5,
        scores=positive(path, config, "query_pre_attn_scalar", 256.0) ** -0.5,
        score_cap=caps[0],
        logit_cap=caps[1],
    )


GEMMA2 = llama_like(
    "gemma2",
    "Gemma2",
    NO_MLP_BIAS,
    ONE_WAY,
    features=FEATURES,
    switches=ATTENTION_BIAS,
    windows=Windows(alternate_layers),
    scales=read_scales,
    act=ACT,
    norms=NORMS,
    norm="UnitNorm",
    activation="GEGLU",
    absent={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
)
