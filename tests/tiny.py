"""Tiny random models as Hugging Face folders, one for each family that the policy supports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
import torch
import transformers

from rs_aligner.model.families import mixtral, qwen3_moe
from rs_aligner.model.families.mixture import Mixture


class FakeTokenizer:
    """What a made-up tokenizer of the data tests need not say itself: no control tokens, one end token."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    control_tokens: tuple[str, ...] = ()
    fingerprint: str | None = None
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({})

    def encode(self, text: str, *, is_chat: bool = False, plain: Sequence[tuple[int, int]] = ()) -> list[int]:
        raise NotImplementedError

    def prepare(self, texts: Sequence[str]) -> None:
        pass

    def decode(self, ids: Sequence[int], *, raw: bool = False) -> str:
        return " ".join(map(str, ids))

    def closing(self, is_chat: bool) -> tuple[int, ...]:
        return self.eos_ids[:1]

    def token(self, text: str) -> int | None:
        return None

    def apply_chat_template(self, messages: Any, tools: Any = None, arguments: Any = None) -> tuple[str, str]:
        raise ValueError("no chat template")

    def answer_in_template(self, messages: Any, tools: Any = None, arguments: Any = None) -> str:
        raise ValueError("no chat template")

    def chat_in(self, text: str) -> tuple[bool, bool, str]:
        return False, False, ""


SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
OF_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 96, "n_inner": 80}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.3, 3.1],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}  # some defaults are beyond the vocabulary
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.5,
}
FAMILIES = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama3": lambda: transformers.LlamaConfig(
        **{**SIZES, "max_position_embeddings": 16384}, tie_word_embeddings=False, rope_parameters=LLAMA3_ROPE
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None, head_dim=16),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
    "mixtral": lambda: transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3 moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=3, moe_intermediate_size=24, head_dim=16
    ),
    "qwen3 moe dense": lambda: transformers.Qwen3MoeConfig(
        **SIZES,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        head_dim=16,
        mlp_only_layers=[0],
    ),
    "gpt2": lambda: transformers.GPT2Config(**OF_GPT2, bos_token_id=None, eos_token_id=None),
    "smollm3": lambda: transformers.SmolLM3Config(
        **SIZES, **ENDS, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=24
    ),
    "granite": lambda: transformers.GraniteConfig(**SIZES, **MULTIPLIERS),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES, **ENDS),
    "olmo3": lambda: transformers.Olmo3Config(
        **SIZES, **ENDS, sliding_window=24, rope_parameters={"full_attention": {**YARN_ROPE}}
    ),
    "phi3": lambda: transformers.Phi3Config(
        **{**SIZES, "hidden_size": 64},
        **ENDS,
        sliding_window=24,
        rope_parameters={**LONGROPE, "partial_rotary_factor": 0.75},
        original_max_position_embeddings=112,
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, **ENDS, head_dim=16, sliding_window=24, query_pre_attn_scalar=20, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**SIZES, **ENDS},
        head_dim=16,
        sliding_window=24,
        sliding_window_pattern=2,
        query_pre_attn_scalar=20,
        final_logit_softcapping=3.0,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}},
    ),
    "all of llama": lambda: transformers.LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True, rope_parameters=YARN_ROPE
    ),
}


MIXTURES = {
    "mixtral": mixtral.EXPERTS,
    "qwen3 moe": qwen3_moe.EXPERTS,
    "qwen3 moe dense": qwen3_moe.EXPERTS,
}
"""Those of them that have experts, and how their tensors are named."""


def by_expert(tensors: Mapping[str, torch.Tensor], names: Mixture) -> dict[str, torch.Tensor]:
    """Tensors of a mixture as a folder has them, an expert's each for itself; `transformers` stacks them."""
    found = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.partition("mlp.experts.")
        if kind == "gate_up_proj":
            for number, expert in enumerate(tensor):
                for which, part in zip((names.gate, names.up), expert.chunk(2), strict=True):
                    found[layer + which.format(number)] = part
        elif kind == "down_proj":
            for number, expert in enumerate(tensor):
                found[layer + names.down.format(number)] = expert
        else:
            found[name.replace("mlp.gate.weight", names.router)] = tensor
    return found


def balanced(folder: Path, copy: Path, coefficient: float = 0.5) -> Path:
    """A copy of a mixture's folder whose routers have a loss of their own; returns it."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"output_router_logits": True, "router_aux_loss_coef": coefficient}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def save_tiny(
    family: str, folder: Path, seed: int = 0, *, layers: int | None = None, vocab_size: int | None = None
) -> Path:
    """A random model with weights large enough for its logits to differ clearly; returns `folder`."""
    config = FAMILIES[family]()
    config.vocab_size = vocab_size or config.vocab_size
    if layers is not None:
        config.num_hidden_layers = layers
        for key in ("layer_types", "no_rope_layers"):
            if getattr(config, key, None) is not None:
                setattr(config, key, getattr(config, key)[:layers])
    return save_random(config, folder, seed)


def save_random(config: Any, folder: Path, seed: int = 0) -> Path:
    """A model of a config with such weights; returns `folder`."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def save_gpt2_tokenizer(folder: Path) -> int:
    """Byte pairs as GPT-2's own folders have them, one token for begin and end; returns their number."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["to be or not to be"], vocab_size=270, special_tokens=["<|endoftext|>"])
    trained.save_model(str(folder))
    made = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(made))
    return trained.get_vocab_size()


def save_tiny_with_tokenizer(folder: Path, seed: int = 0, family: str = "llama") -> Path:
    """A tiny model that reads and writes any text, a byte a token; returns `folder`."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    config = FAMILIES[family]()
    config.vocab_size, config.bos_token_id, config.eos_token_id = len(vocabulary), 0, 1
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def save_more_tokens(folder: Path, number: int) -> Path:
    """Add tokens to a folder's tokenizer, and not to its model; returns `folder`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{i}>" for i in range(number)])
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_adapter(folder: Path, model: Path, *, rank: int = 2, seed: int = 0, **settings: Any) -> Path:
    """An adapter of `peft` for a model, on queries and values, B not zero; returns `folder`."""
    import peft

    torch.manual_seed(seed)
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 6, **settings}
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=rank, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return folder
