"""What Llama and its relatives share: RMSNorm, SwiGLU, rotary positions, grouped queries.

A relative is made of a few words (`llama_like`): what of its config is refused besides, and what its layers
have beyond a Llama's, always or where a key says so: biases on queries, keys and values (`qkv_bias`), behind
attention (`projection_bias`) and in the MLP (`mlp_bias`), norms on queries and keys (`qk_norm`), layers that
see a window only or have no positions, and numbers that it multiplies by (`Scales`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rs_aligner.model.architecture import PROJECTION_BIAS, QKV_BIAS, Architecture
from rs_aligner.model.families.base import SCORE, Family, Only, Part, Parts
from rs_aligner.model.families.mixture import Mixture, megatron_settings, with_experts
from rs_aligner.model.families.reading import Reading
from rs_aligner.model.layouts import COLUMNS, GATED, REPLICATED, ROWS, grouped_qkv

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ATTENTION_BIAS = {"attention_bias": frozenset({QKV_BIAS, PROJECTION_BIAS})}
NO_ATTENTION_BIAS, NO_MLP_BIAS = (Only(f"{one}_bias", (False,), absent=False) for one in ("attention", "mlp"))


BEFORE = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
}
"""The norms of a Llama's layer, before attention and MLP: Megatron's names, and those of `transformers`."""


def llama_like(
    name: str,
    classes: str,
    *only: Only,
    mixture: Mixture | None = None,
    norms: Mapping[str, str] = MappingProxyType(BEFORE),
    norm: str = "RMSNorm",
    activation: str = "SwiGLU",
    **how: Any,
) -> Family:
    """A relative of Llama.

    Args:
        name: its `model_type`.
        classes: what the names of its classes in `transformers` begin with.
        only: what of its config is supported, besides what is so for all.
        mixture: what its layers have in the place of an MLP, if they have experts.
        norms: where its layers have norms, as `BEFORE` has it; those behind attention and MLP are
            `self_attn_bda.norm.weight` and `mlp_bda.norm.weight`.
        norm, activation: the names of their classes in `modules`.
        how: what else of its config is read, as `Reading` has it.
    """
    return Family(
        name=name,
        classes=classes,
        read=Reading(name, only, mixture=mixture, **how),
        layer=partial(_layer, norms) if mixture is None else partial(_layer_of_experts, mixture, norms),
        outside=_outside,
        megatron=_megatron,
        spec=partial(_spec, norms, norm, activation),
        final_norm=partial(_module, norm),
        gpt=_gpt,
        embedding=EMBEDDING,
        head=HEAD,
    )


def _layer(norms: Mapping[str, str], arch: Architecture) -> Parts:
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    width, inner = arch.hidden_size, arch.intermediate_size
    qkv = grouped_qkv(arch.num_heads, arch.num_kv_heads, arch.head_dim)
    sizes = {"q": queries, "k": keys, "v": keys}
    projections = {f"self_attn.{x}_proj.weight": (size, width) for x, size in sizes.items()}
    gated = {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
    parts = {
        **{ours: Part({theirs: (width,)}, REPLICATED) for ours, theirs in norms.items()},
        "self_attention.linear_qkv.weight": Part(projections, qkv),
        "self_attention.linear_proj.weight": Part({"self_attn.o_proj.weight": (width, queries)}, COLUMNS),
        "mlp.linear_fc1.weight": Part(gated, GATED),
        "mlp.linear_fc2.weight": Part({"mlp.down_proj.weight": (width, inner)}, COLUMNS),
    }
    if arch.qkv_bias:
        biases = {f"self_attn.{x}_proj.bias": (size,) for x, size in sizes.items()}
        parts["self_attention.linear_qkv.bias"] = Part(biases, qkv)
    if arch.projection_bias:
        parts["self_attention.linear_proj.bias"] = Part({"self_attn.o_proj.bias": (width,)}, REPLICATED)
    if arch.mlp_bias:
        biases = {f"mlp.{x}_proj.bias": (inner,) for x in ("gate", "up")}
        parts["mlp.linear_fc1.bias"] = Part(biases, GATED)
        parts["mlp.linear_fc2.bias"] = Part({"mlp.down_proj.bias": (width,)}, REPLICATED)
    if arch.qk_norm:
        for x in "qk":
            norm = {f"self_attn.{x}_norm.weight": (arch.head_dim,)}
            parts[f"self_attention.{x}_layernorm.weight"] = Part(norm, REPLICATED)
    if arch.wide_qk_norm:
        for x in "qk":
            wide = {f"self_attn.{x}_norm.weight": (sizes[x],)}
            parts[f"self_attention.{x}_layernorm.weight"] = Part(wide, ROWS)
    return parts


def _layer_of_experts(mixture: Mixture, norms: Mapping[str, str], arch: Architecture) -> Parts:
    parts = _layer(norms, arch)
    if arch.experts is None:
        return parts
    return {name: part for name, part in parts.items() if not name.startswith("mlp.")} | mixture.parts(arch)


def _outside(arch: Architecture) -> Parts:
    table = (arch.vocab_size, arch.hidden_size)
    last = Part({EMBEDDING if arch.tied_embeddings else HEAD: table}, ROWS)
    if arch.value_head:
        last = Part({SCORE: (1, arch.hidden_size)}, REPLICATED)
    return {
        "embedding.word_embeddings.weight": Part({EMBEDDING: table}, ROWS),
        "decoder.final_layernorm.weight": Part({"model.norm.weight": (arch.hidden_size,)}, REPLICATED),
        "output_layer.weight": last,
    }


def _megatron(arch: Architecture) -> dict[str, Any]:
    from torch.nn import functional

    return {
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": functional.silu,
        "use_te_activation_func": True,  # Megatron's name for an activation that the layer's spec has
        "add_bias_linear": False,
        "add_qkv_bias": arch.qkv_bias,
        "qk_layernorm": arch.qk_norm,
        **megatron_settings(arch),
    }


def _spec(norms: Mapping[str, str], norm: str, activation: str, arch: Architecture) -> ModuleSpec:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import ModuleSpec
    from megatron.core.transformer.identity_op import IdentityOp

    from rs_aligner.model.attention import LineAttention, RotaryAttention, WideNormAttention
    from rs_aligner.model.layer import JoinedLayer
    from rs_aligner.model.modules import BiasedColumns, BiasedRows, parts_of

    normed = _module(norm)
    layer = get_gpt_layer_local_spec(qk_layernorm=arch.qk_norm, normalization="RMSNorm")
    parts, after = layer.submodules, "mlp_bda.norm.weight" in norms
    for name in ("input_layernorm", "pre_mlp_layernorm"):
        setattr(parts, name, normed if f"{name}.weight" in norms else IdentityOp)
    if after or arch.scales.residual != 1:
        layer.module = JoinedLayer
        layer.params = {"after": normed if after else None, "scale": arch.scales.residual}
    parts.self_attention.module = WideNormAttention if arch.wide_qk_norm else LineAttention
    attention, mlp = parts.self_attention.submodules, parts_of(parts.mlp)
    mlp.activation_func = _module(activation)
    attention.core_attention = ModuleSpec(RotaryAttention, params={"arch": arch})
    if arch.projection_bias:
        attention.linear_proj = BiasedRows
    if arch.mlp_bias:
        mlp.linear_fc1, mlp.linear_fc2 = BiasedColumns, BiasedRows
    if arch.qk_norm:
        attention.q_layernorm = attention.k_layernorm = normed
    return layer if arch.experts is None else with_experts(layer, arch)


def _module(name: str) -> type[torch.nn.Module]:
    from rs_aligner.model import modules

    found: type[torch.nn.Module] = getattr(modules, name)
    return found


def _gpt(arch: Architecture) -> dict[str, Any]:
    return {"position_embedding_type": "rope"}
