"""What Llama and its relatives share: RMSNorm, SwiGLU, rotary positions, grouped queries.

A relative is made of a few words (`llama_like`): what of its config is refused besides, and what its layers
have beyond a Llama's, always or where a key says so: biases on queries, keys and values (`qkv_bias`), behind
attention (`projection_bias`) and in the MLP (`mlp_bias`), or norms on queries and keys (`qk_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rs_aligner.config.layout import positions_of
from rs_aligner.model.architecture import EXPERTS, PROJECTION_BIAS, QKV_BIAS, Architecture
from rs_aligner.model.families.base import SCORE, Config, Family, Only, Part, Parts, has_value_head
from rs_aligner.model.families.mixture import Mixture, megatron_settings, with_experts
from rs_aligner.model.families.rope import read_rope
from rs_aligner.model.layouts import COLUMNS, GATED, REPLICATED, ROWS, grouped_qkv

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ATTENTION_BIAS = {"attention_bias": frozenset({QKV_BIAS, PROJECTION_BIAS})}
NO_ATTENTION_BIAS, NO_MLP_BIAS = (Only(f"{one}_bias", (False,), absent=False) for one in ("attention", "mlp"))

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
_SHARED = (Only("hidden_act", ("silu",), absent="silu"),)


def llama_like(
    name: str,
    classes: str,
    *only: Only,
    features: frozenset[str] = frozenset(),
    switches: Mapping[str, frozenset[str]] = MappingProxyType({}),
    mixture: Mixture | None = None,
) -> Family:
    """A relative of Llama.

    Args:
        name: its `model_type`.
        classes: what the names of its classes in `transformers` begin with.
        only: what of its config is supported, besides what is so for all.
        features: what its layers have beyond a Llama's.
        switches: what they have where a key of the config is true.
        mixture: what they have in the place of an MLP, if they have experts.
    """
    return Family(
        name=name,
        classes=classes,
        read=partial(_read, name, only, features, switches, mixture),
        layer=_layer if mixture is None else partial(_layer_of_experts, mixture),
        outside=_outside,
        megatron=_megatron,
        spec=_spec,
        final_norm=_norm,
        gpt=_gpt,
        embedding=EMBEDDING,
        head=HEAD,
    )


def _read(
    name: str,
    only: tuple[Only, ...],
    features: frozenset[str],
    switches: Mapping[str, frozenset[str]],
    mixture: Mixture | None,
    path: Path,
    config: Config,
) -> Architecture:
    missing = [key for key in _REQUIRED if not isinstance(config.get(key), int)]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} must be set to a whole number")
    Only("quantization_config", (None,)).check(path, config)
    rope = read_rope(path, config)
    for one in (*_SHARED, *only, *(Only(key, (True, False), absent=False) for key in switches)):
        one.check(path, config)
    switched = (more for key, more in switches.items() if config.get(key))
    window, positions = config.get("sliding_window"), positions_of(config)
    if not isinstance(window, int | None) or positions is None or positions < 1:
        raise ValueError(f"{path}: sliding_window {window!r} is not supported; null or a number of tokens is")
    heads = config["num_attention_heads"]
    value_head = has_value_head(path, config)
    experts = None if mixture is None else mixture.read(path, config)
    return Architecture(
        family=name,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate_size=config["intermediate_size" if mixture is None else mixture.size],
        max_positions=positions,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope=rope,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)) and not value_head,
        features=features.union(*switched, () if experts is None else (EXPERTS,)),
        value_head=value_head,
        experts=experts,
    )


def _layer(arch: Architecture) -> Parts:
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    width, inner = arch.hidden_size, arch.intermediate_size
    qkv = grouped_qkv(arch.num_heads, arch.num_kv_heads, arch.head_dim)
    sizes = {"q": queries, "k": keys, "v": keys}
    projections = {f"self_attn.{x}_proj.weight": (size, width) for x, size in sizes.items()}
    gated = {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
    parts = {
        "input_layernorm.weight": Part({"input_layernorm.weight": (width,)}, REPLICATED),
        "pre_mlp_layernorm.weight": Part({"post_attention_layernorm.weight": (width,)}, REPLICATED),
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
    return parts


def _layer_of_experts(mixture: Mixture, arch: Architecture) -> Parts:
    dense = {name: part for name, part in _layer(arch).items() if not name.startswith("mlp.")}
    return dense | mixture.parts(arch)


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


def _spec(arch: Architecture) -> ModuleSpec:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from rs_aligner.model.attention import LineAttention, RotaryAttention
    from rs_aligner.model.modules import BiasedColumns, BiasedRows, RMSNorm, SwiGLU, parts_of

    layer = get_gpt_layer_local_spec(qk_layernorm=arch.qk_norm, normalization="RMSNorm")
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layer.submodules.self_attention.module = LineAttention
    attention, mlp = layer.submodules.self_attention.submodules, parts_of(layer.submodules.mlp)
    mlp.activation_func = SwiGLU
    attention.core_attention = RotaryAttention
    if arch.projection_bias:
        attention.linear_proj = BiasedRows
    if arch.mlp_bias:
        mlp.linear_fc1, mlp.linear_fc2 = BiasedColumns, BiasedRows
    if arch.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer if arch.experts is None else with_experts(layer, arch)


def _norm() -> type[torch.nn.Module]:
    from rs_aligner.model.modules import RMSNorm

    return RMSNorm


def _gpt(arch: Architecture) -> dict[str, Any]:
    return {"position_embedding_type": "rope"}
