"""Qwen3-MoE: a Qwen3 with experts, in every layer or in some."""

from __future__ import annotations

from rs_aligner.model.architecture import QK_NORM
from rs_aligner.model.families.kinds import Windows, every_layer
from rs_aligner.model.families.llama_like import ATTENTION_BIAS, NO_MLP_BIAS, llama_like
from rs_aligner.model.families.mixture import Mixture

EXPERTS = Mixture(
    router="mlp.gate.weight",
    gate="mlp.experts.{}.gate_proj.weight",
    up="mlp.experts.{}.up_proj.weight",
    down="mlp.experts.{}.down_proj.weight",
    number=("num_local_experts", "num_experts"),  # of transformers 5, and 4
    size="moe_intermediate_size",
    normalises="norm_topk_prob",
    has_dense=True,
)
QWEN3_MOE = llama_like(
    "qwen3_moe",
    "Qwen3Moe",
    NO_MLP_BIAS,
    features=frozenset({QK_NORM}),
    switches=ATTENTION_BIAS,
    mixture=EXPERTS,
    windows=Windows(every_layer, "use_sliding_window"),
    absent={"sliding_window": 4096},
)
