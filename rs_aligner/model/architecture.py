"""The shape of a policy, read from a Hugging Face `config.json`: the Llama family.

Supported are Llama (2, 3), Mistral without a sliding window, Qwen2 and Qwen3: RMSNorm, SwiGLU,
rotary positions, grouped queries; with biases on queries, keys and values (Qwen2), or norms on
queries and keys (Qwen3). A `*ForSequenceClassification` model with one label is a reward model: the same
trunk with a value head. Whatever a config asks for beyond that is refused, never ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Architecture:
    """Sizes and switches of a Llama-family decoder (names as in Hugging Face configs)."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling_factor: float | None
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    value_head: bool = False
    """Whether a linear head of one output, `score.weight`, stands in the place of the output layer."""

    @property
    def num_parameters(self) -> int:
        """Of the whole model, shared weights counted once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        if self.qkv_bias:
            attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        if self.qk_norm:
            attention += 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size
        head = self.hidden_size if self.value_head else 0 if self.tied_embeddings else embeddings
        return self.num_layers * layer + embeddings + head + self.hidden_size

    def cache_bytes_per_token(self, element: int) -> int:
        """Keys and values of a token in all layers, with numbers of `element` bytes."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element


def read_architecture(folder: Path) -> Architecture:
    """Read `folder/config.json`.

    Raises:
        ValueError: no such file, another family, or a feature that is not supported; named with
            what would work.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    config = _config(path)
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{path}: model_type {family!r} is not supported; one of {', '.join(FAMILIES)} is")
    missing = [key for key in _REQUIRED if not isinstance(config.get(key), int)]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} must be set to a whole number")
    _refuse(path, "quantization_config", config.get("quantization_config"), (None,))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _refuse(path, "rope_type", rope_type, ("default", "llama3"))
    _refuse(path, "hidden_act", config.get("hidden_act", "silu"), ("silu",))
    _refuse(path, "mlp_bias", config.get("mlp_bias", False), (False,))
    _refuse(path, "use_sliding_window", config.get("use_sliding_window", False), (False,))
    if family == "mistral":
        _refuse(path, "sliding_window", config.get("sliding_window"), (None,))
    if family != "qwen2":
        _refuse(path, "attention_bias", config.get("attention_bias", False), (False,))
    if rope_type == "llama3":
        _refuse(path, "low_freq_factor", rope.get("low_freq_factor"), (1.0,))
        _refuse(path, "high_freq_factor", rope.get("high_freq_factor"), (4.0,))
        _refuse(
            path, "original_max_position_embeddings", rope.get("original_max_position_embeddings"), (8192,)
        )
    heads = config["num_attention_heads"]
    value_head = _has_value_head(path, config)
    return Architecture(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        rope_scaling_factor=float(rope["factor"]) if rope_type == "llama3" else None,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)) and not value_head,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        value_head=value_head,
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} should be a JSON object, not {type(config).__name__}")
    return config


def _has_value_head(path: Path, config: dict[str, Any]) -> bool:
    if not any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return False
    labels = config.get("num_labels") or len(config.get("id2label") or ("LABEL_0", "LABEL_1"))
    if labels != 1:
        raise ValueError(f"{path}: a classifier of {labels} labels is no reward model; one with 1 label is")
    return True


def _refuse(path: Path, key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        choices = " or ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{path}: {key} {value!r} is not supported; {choices} is")
