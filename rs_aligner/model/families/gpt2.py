"""GPT-2: LayerNorm, learnt positions, biases everywhere, MLPs without gates, transposed matrices.

Models of later makers that call themselves so are read, too (Cerebras-GPT). Dropout is for none of the
families: loss and gradient would depend on the layout. Left out on purpose, and refused by name: scores that
are scaled by layer (`scale_attn_by_inverse_layer_idx`), and attention to an encoder.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.model.architecture import (
    LAYER_NORM,
    LEARNT_POSITIONS,
    MLP_BIAS,
    NO_POSITIONS,
    PLAIN_MLP,
    PROJECTION_BIAS,
    QKV_BIAS,
    Architecture,
)
from rs_aligner.model.families.base import SCORE, Config, Family, Only, Part, Parts, has_value_head
from rs_aligner.model.layouts import COLUMNS, REPLICATED, ROWS, grouped_qkv, stacked, transposed

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec

_EMBEDDING, _HEAD, _NAME = "transformer.wte.weight", "lm_head.weight", "gpt2"
_FEATURES = {QKV_BIAS, PROJECTION_BIAS, MLP_BIAS, LAYER_NORM, LEARNT_POSITIONS, PLAIN_MLP}
_ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
"""How torch approximates each of them."""
_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_ONLY = (
    Only("activation_function", tuple(_ACTIVATIONS), absent="gelu_new"),
    Only("scale_attn_weights", (True,), absent=True),
    *(
        Only(key, (False,), absent=False)
        for key in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention")
    ),
    Only("tie_word_embeddings", (True, False), absent=True),
    Only("quantization_config", (None,)),
)


def _read(path: Path, config: Config) -> Architecture:
    missing = [key for key in _SIZES if not isinstance(config.get(key), int) or config[key] < 1]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} must be set to a whole number above 0")
    for one in _ONLY:
        one.check(path, config)
    width, heads = config["n_embd"], config["n_head"]
    if width % heads:
        raise ValueError(f"{path}: n_head {heads} is not supported; a number that divides n_embd {width} is")
    inner, eps = config.get("n_inner"), config.get("layer_norm_epsilon", 1e-5)
    if inner is not None and (not isinstance(inner, int) or inner < 1):
        raise ValueError(f"{path}: n_inner {inner!r} is not supported; null or a whole number above 0 is")
    if not isinstance(eps, float | int) or eps <= 0:
        raise ValueError(f"{path}: layer_norm_epsilon {eps!r} is not supported; a number above 0 is")
    value_head = has_value_head(path, config)
    return Architecture(
        family=_NAME,
        vocab_size=config["vocab_size"],
        hidden_size=width,
        num_layers=config["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        intermediate_size=inner or 4 * width,
        max_positions=config["n_positions"],
        norm_eps=float(eps),
        rope=NO_POSITIONS,
        tied_embeddings=config.get("tie_word_embeddings", True) and not value_head,
        features=frozenset(_FEATURES),
        value_head=value_head,
        activation=config.get("activation_function", "gelu_new"),
    )


def _norm(megatron: str, name: str, width: int) -> Parts:
    return {
        f"{megatron}.{kind}": Part({f"{name}.{kind}": (width,)}, REPLICATED) for kind in ("weight", "bias")
    }


def _layer(arch: Architecture) -> Parts:
    width, inner = arch.hidden_size, arch.intermediate_size
    qkv = stacked(grouped_qkv(arch.num_heads, arch.num_kv_heads, arch.head_dim), [width] * 3)
    rows, columns = transposed(ROWS), transposed(COLUMNS)
    return {
        **_norm("input_layernorm", "ln_1", width),
        **_norm("pre_mlp_layernorm", "ln_2", width),
        "self_attention.linear_qkv.weight": Part({"attn.c_attn.weight": (width, 3 * width)}, transposed(qkv)),
        "self_attention.linear_qkv.bias": Part({"attn.c_attn.bias": (3 * width,)}, qkv),
        "self_attention.linear_proj.weight": Part({"attn.c_proj.weight": (width, width)}, columns),
        "self_attention.linear_proj.bias": Part({"attn.c_proj.bias": (width,)}, REPLICATED),
        "mlp.linear_fc1.weight": Part({"mlp.c_fc.weight": (width, inner)}, rows),
        "mlp.linear_fc1.bias": Part({"mlp.c_fc.bias": (inner,)}, ROWS),
        "mlp.linear_fc2.weight": Part({"mlp.c_proj.weight": (inner, width)}, columns),
        "mlp.linear_fc2.bias": Part({"mlp.c_proj.bias": (width,)}, REPLICATED),
    }


def _outside(arch: Architecture) -> Parts:
    table = (arch.vocab_size, arch.hidden_size)
    last = Part({_EMBEDDING if arch.tied_embeddings else _HEAD: table}, ROWS)
    if arch.value_head:
        last = Part({SCORE: (1, arch.hidden_size)}, REPLICATED)
    positions = {"transformer.wpe.weight": (arch.max_positions, arch.hidden_size)}
    return {
        "embedding.word_embeddings.weight": Part({_EMBEDDING: table}, ROWS),
        "embedding.position_embeddings.weight": Part(positions, REPLICATED),
        **_norm("decoder.final_layernorm", "transformer.ln_f", arch.hidden_size),
        "output_layer.weight": last,
    }


def _megatron(arch: Architecture) -> dict[str, Any]:
    from torch.nn import functional

    return {
        "normalization": "LayerNorm",
        "gated_linear_unit": False,
        "activation_func": partial(functional.gelu, approximate=_ACTIVATIONS[arch.activation]),
        "add_bias_linear": True,
    }


def _spec(arch: Architecture) -> ModuleSpec:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from rs_aligner.model.attention import LineAttention, RotaryAttention
    from rs_aligner.model.modules import LayerNorm

    layer = get_gpt_layer_local_spec()
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = LayerNorm
    layer.submodules.self_attention.module = LineAttention
    layer.submodules.self_attention.submodules.core_attention = RotaryAttention
    return layer


def _final_norm() -> type[torch.nn.Module]:
    from rs_aligner.model.modules import LayerNorm

    return LayerNorm


def _gpt(arch: Architecture) -> dict[str, Any]:
    return {"position_embedding_type": "learned_absolute"}


GPT2 = Family(
    name=_NAME,
    classes="GPT2",
    read=_read,
    layer=_layer,
    outside=_outside,
    megatron=_megatron,
    spec=_spec,
    final_norm=_final_norm,
    gpt=_gpt,
    trunk="transformer.",
    layers="transformer.h.{}.",
    embedding=_EMBEDDING,
    head=_HEAD,
    harmless=r"\.attn\.(masked_)?bias",
)
