"""Checkpoints as Megatron-LM, Megatron Bridge and NeMo publish them, written by megatron-core itself.

Keys, shapes and the order of rows stand here a second time, written down from megatron-core's
`sharded_state_dict` and from published checkpoints, so that a test does not read what the code it tests has
written. A layer's parameters lie in one tensor of all layers, cut for two tensor-parallel ranks.
"""

from __future__ import annotations

import argparse
import io
import signal
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.transformer.enums import AttnBackend

from rs_aligner.model import cpu

Tensors = Mapping[str, torch.Tensor]
PARTS = 2
"""Tensor-parallel ranks that wrote it."""

_OUTSIDE = {  # the key, and along which dimension ranks cut it
    "embedding.word_embeddings.weight": ("model.embed_tokens.weight", 0),
    "decoder.final_layernorm.weight": ("model.norm.weight", None),
    "output_layer.weight": ("lm_head.weight", 0),
}
_OF_A_LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight", None),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight", 1),
    "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight", None),
    "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight", None),
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight", None),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight", 1),
}


def megatron_tensors(
    tensors: Tensors, config: Any
) -> dict[str, tuple[torch.Tensor | list[torch.Tensor], Any]]:
    """Megatron's parameters of a model: whole, or one of each layer, and the dimension of the cut."""
    found: dict[str, tuple[torch.Tensor | list[torch.Tensor], Any]] = {
        key: (tensors[name], cut) for key, (name, cut) in _OUTSIDE.items() if name in tensors
    }
    layers = [_layer(tensors, f"model.layers.{n}.", config) for n in range(config.num_hidden_layers)]
    for key, (_, cut) in layers[0].items():
        found[f"decoder.layers.{key}"] = [layer[key][0] for layer in layers], cut
    return found


def _layer(tensors: Tensors, prefix: str, config: Any) -> dict[str, tuple[torch.Tensor, Any]]:
    own = {key: (prefix + name, cut) for key, (name, cut) in _OF_A_LAYER.items()}
    found = {key: (tensors[name], cut) for key, (name, cut) in own.items() if name in tensors}
    for kind in ("weight", "bias"):
        if f"{prefix}self_attn.q_proj.{kind}" in tensors:
            rows = [tensors[f"{prefix}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            found[f"self_attention.linear_qkv.{kind}"] = _interleaved(*rows, config), 0
    gate, up = (tensors[f"{prefix}mlp.{x}_proj.weight"] for x in ("gate", "up"))
    found["mlp.linear_fc1.weight"] = torch.cat([gate, up]), "halves"
    return found


def _interleaved(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, config: Any) -> torch.Tensor:
    """For each key head the queries that read it, then itself and its value."""
    groups = config.num_key_value_heads
    dim, each = len(key) // groups, config.num_attention_heads // groups
    rows: list[torch.Tensor] = []
    for group in range(groups):
        for head in range(group * each, (group + 1) * each):
            rows += [query[head * dim + i] for i in range(dim)]
        rows += [key[group * dim + i] for i in range(dim)]
        rows += [value[group * dim + i] for i in range(dim)]
    return torch.stack(rows)


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write a sharded state as megatron-core does; returns `folder`."""
    folder.mkdir(parents=True)
    cpu.install()
    with cpu.pretend():
        dist_checkpointing.save(state, str(folder))
    return folder


def sharded(parameters: Mapping[str, Any], prefix: str, *, numbered: bool = False) -> dict[str, Any]:
    """Megatron's parameters as two ranks would hand them to be saved, all at once.

    Args:
        parameters: as `megatron_tensors` has them.
        prefix: what the program puts in front of keys.
        numbered: whether each layer has keys of its own.
    """
    state: dict[str, Any] = {}
    for key, (tensors, cut) in parameters.items():
        if isinstance(tensors, torch.Tensor):
            state |= _cut(prefix + key, tensors, cut, ())
            continue
        for number, tensor in enumerate(tensors):
            if numbered:
                own = key.replace("decoder.layers.", f"decoder.layers.{number}.")
                state |= _cut(prefix + own, tensor, cut, ())
            else:
                state |= _cut(prefix + key, tensor, cut, ((0, number, len(tensors)),))
    return state


def _cut(key: str, tensor: torch.Tensor, cut: Any, offsets: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    axis, name = len(offsets), "/".join([key, *(str(one[1]) for one in offsets)])
    if cut is None:
        whole = ShardedTensor.from_rank_offsets(key, tensor.contiguous(), *offsets, prepend_axis_num=axis)
        return {name: whole}
    # Gate and up lie whole one behind the other, however many ranks there are.
    number, along = (2 * PARTS, 0) if cut == "halves" else (PARTS, cut)
    return {
        f"{name}/{rank}": ShardedTensor.from_rank_offsets(
            key, part.contiguous(), *offsets, (along + axis, rank, number), prepend_axis_num=axis
        )
        for rank, part in enumerate(tensor.chunk(number, along))
    }


def training_state(parameters: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What lies beside the weights of a training: averages, random states, layers' extra ones."""
    key, (tensor, _) = next(iter(parameters.items()))
    assert isinstance(tensor, torch.Tensor)
    averages = ShardedTensor.from_rank_offsets(
        f"optimizer.state.exp_avg.{prefix}{key}", torch.ones_like(tensor)
    )
    extra = ShardedObject(
        f"{prefix}decoder.layers.self_attention.linear_qkv._extra_state", io.BytesIO(b"x"), (1,), (0,)
    )
    rng = ShardedObject("rng_state", [{"torch_rng_state": torch.get_rng_state()}], (1, 1), (0, 0))
    return {"averages": averages, "extra": extra, "rng": rng}


def arguments(config: Any, **changes: Any) -> argparse.Namespace:
    """Megatron-LM's arguments of a model, with some of the things that are no plain data."""
    heads, theta = config.num_attention_heads, (config.rope_parameters or {}).get("rope_theta", 10000.0)
    groups = config.num_key_value_heads
    return argparse.Namespace(
        **{
            "num_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "ffn_hidden_size": config.intermediate_size,
            "num_attention_heads": heads,
            "group_query_attention": groups != heads,
            "num_query_groups": groups if groups != heads else 1,
            "kv_channels": getattr(config, "head_dim", None) or config.hidden_size // heads,
            "norm_epsilon": config.rms_norm_eps,
            "normalization": "RMSNorm",
            "swiglu": True,
            "position_embedding_type": "rope",
            "rotary_base": int(theta),
            "rotary_percent": 1.0,
            "use_rope_scaling": False,
            "rope_scaling_factor": 8.0,
            "rotary_seq_len_interpolation_factor": None,
            "untie_embeddings_and_output_weights": not config.tie_word_embeddings,
            "apply_layernorm_1p": False,
            "num_experts": None,
            "params_dtype": torch.bfloat16,
            "attention_backend": AttnBackend.auto,
            "exit_signal": signal.SIGTERM,
            **changes,
        }
    )


def nemo_2(config: Any, **changes: Any) -> dict[str, Any]:
    """`context/model.yaml` of a model."""
    theta = (config.rope_parameters or {}).get("rope_theta", 10000.0)
    return {
        "_target_": "nemo.collections.llm.gpt.model.qwen2.Qwen2Model",
        "config": {
            "_target_": "nemo.collections.llm.gpt.model.qwen2.Qwen2Config",
            "activation_func": {"_call_": False, "_target_": "torch._C._nn.silu"},
            "gated_linear_unit": True,
            "hidden_size": config.hidden_size,
            "kv_channels": None,
            "layernorm_epsilon": config.rms_norm_eps,
            "normalization": "RMSNorm",
            "num_attention_heads": config.num_attention_heads,
            "num_layers": config.num_hidden_layers,
            "num_query_groups": config.num_key_value_heads,
            "position_embedding_type": "rope",
            "rotary_base": theta,
            "share_embeddings_and_output_weights": config.tie_word_embeddings,
            **changes,
        },
        "tokenizer": {
            "_target_": "nemo.collections.common.tokenizers.AutoTokenizer",
            "pretrained_model_name": "x",
        },
    }


def nemo_1(config: Any, **changes: Any) -> dict[str, Any]:
    """`model_config.yaml` of a model."""
    theta = (config.rope_parameters or {}).get("rope_theta", 10000.0)
    return {
        "mcore_gpt": True,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": getattr(config, "head_dim", None),
        "layernorm_epsilon": config.rms_norm_eps,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_base": theta,
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "tokenizer": {"library": "huggingface", "type": "x"},
        **changes,
    }


def write_yaml(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(content)))


def pack(folder: Path, archive: Path, mode: str = "w:") -> None:
    """A folder as NeMo packs it."""
    with tarfile.open(archive, mode) as opened:  # type: ignore[call-overload]  # the mode is a variable
        opened.add(folder, arcname=".")
