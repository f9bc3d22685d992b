"""Mixtral: a Mistral with experts."""

from __future__ import annotations

from rs_aligner.model.families.base import Only
from rs_aligner.model.families.kinds import Windows, every_layer
from rs_aligner.model.families.llama_like import NO_ATTENTION_BIAS, NO_MLP_BIAS, llama_like
from rs_aligner.model.families.mixture import Mixture

_EXPERT = "block_sparse_moe.experts.{}."
EXPERTS = Mixture(
    router="block_sparse_moe.gate.weight",
    gate=f"{_EXPERT}w1.weight",
    up=f"{_EXPERT}w3.weight",
    down=f"{_EXPERT}w2.weight",
    number=("num_local_experts",),
    size="intermediate_size",
    only=(Only("router_jitter_noise", (0, None)),),
)
MIXTRAL = llama_like(
    "mixtral", "Mixtral", NO_ATTENTION_BIAS, NO_MLP_BIAS, mixture=EXPERTS, windows=Windows(every_layer)
)
