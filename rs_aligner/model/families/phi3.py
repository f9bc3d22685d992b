"""Phi-3 and Phi-4: queries, keys and values in one tensor, gate and up in another; heads turned in part.

Phi-4-mini is a `phi3`, too. LongRoPE is read for sequences within the original length (`rope.py`).
"""

from __future__ import annotations

from dataclasses import replace

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import Part, Parts
from rs_aligner.model.families.kinds import Windows, every_layer
from rs_aligner.model.families.llama_like import NO_ATTENTION_BIAS, NO_MLP_BIAS, llama_like
from rs_aligner.model.layouts import stacked

_NAMES = {"self_attention.linear_qkv": "self_attn.qkv_proj", "mlp.linear_fc1": "mlp.gate_up_proj"}
_LIKE = llama_like(
    "phi3",
    "Phi3",
    NO_ATTENTION_BIAS,
    NO_MLP_BIAS,
    windows=Windows(every_layer),
    ropes=("default", "longrope"),
    in_part=True,
    absent={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
)


def _layer(arch: Architecture) -> Parts:
    """A Llama's parts, the tensors of some of them below each other in one."""
    parts = _LIKE.layer(arch)
    for ours, theirs in _NAMES.items():
        apart = parts[f"{ours}.weight"]
        rows = [shape[0] for shape in apart.tensors.values()]
        one = {f"{theirs}.weight": (sum(rows), arch.hidden_size)}
        parts[f"{ours}.weight"] = Part(one, stacked(apart.layout, rows))
    return parts


PHI3 = replace(_LIKE, layer=_layer)
