"""A model served by llama.cpp, for `engines.py`: run by the Python of an environment that has it.

    PYTHON benchmarks/llama_server.py FOLDER MODEL.gguf PORT ROLLOUTS TOKENS

Writes the Hugging Face folder of a Llama as a GGUF file, in its own type, and serves that on one thread: so
many rollouts at once, each with a cache of its own of so many tokens, prompt included. (One cache for all of
them, `kv_unified`, took seven times as long with 128 rollouts of stories.) The environment has `xllamacpp`
and `gguf`, and nothing of this project.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Tensors:
    """The tensors of a safetensors file, bf16 ones as the bits that they are."""

    def __init__(self, file: Path) -> None:
        self._bytes = file.read_bytes()
        (length,) = struct.unpack("<Q", self._bytes[:8])
        self.about: dict[str, Any] = json.loads(self._bytes[8 : 8 + length])
        self.about.pop("__metadata__", None)
        self._start = 8 + length

    def read(self, name: str) -> np.ndarray:
        """A tensor: float32, or uint16 for bf16."""
        about = self.about[name]
        begin, end = (self._start + place for place in about["data_offsets"])
        kind = {"F32": np.float32, "BF16": np.uint16}[about["dtype"]]
        return np.frombuffer(self._bytes[begin:end], kind).reshape(about["shape"])


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """A head's rows as llama.cpp rotates them: pairs side by side, not half a head apart."""
    half = len(weight) // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def write(folder: Path, file: Path) -> None:
    """Write a Hugging Face folder as a GGUF file."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(file), "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, folder, config)
    tensors = Tensors(folder / "model.safetensors")
    for name in tensors.about:
        add(writer, name, tensors.read(name), heads, kv_heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """The tokens' texts; prompts come as ids, so how text is cut plays no part."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = gguf.TokenType
    ends = {config["bos_token_id"], config["eos_token_id"]}
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text.encode() for text in texts])
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types(
        [
            kinds.CONTROL if place in ends else kinds.BYTE if text.startswith("<0x") else kinds.NORMAL
            for place, text in enumerate(texts)
        ]
    )
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray, heads: int, kv_heads: int) -> None:
    """A tensor by its name there; vectors in float32."""
    bare = name.removeprefix("model.").removesuffix(".weight")
    outside = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    if bare in outside:
        found = outside[bare]
    else:
        _, layer, part = bare.split(".", 2)
        found = f"blk.{layer}.{NAMES[part]}"
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = interleaved(weight, heads if part.endswith("q_proj") else kv_heads)
    if weight.dtype == np.float32:
        writer.add_tensor(f"{found}.weight", weight)
    elif weight.ndim == 1:
        writer.add_tensor(f"{found}.weight", (weight.astype(np.uint32) << 16).view(np.float32))
    else:
        bits = np.ascontiguousarray(weight).view(np.uint8)
        writer.add_tensor(f"{found}.weight", bits, raw_dtype=gguf.GGMLQuantizationType.BF16)


def main() -> None:
    folder, file = map(Path, sys.argv[1:3])
    port, rollouts, tokens = map(int, sys.argv[3:])
    write(folder, file)
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.kv_unified = rollouts * tokens, rollouts, False
    params.hostnames, params.port = ["127.0.0.1"], port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup, params.cache_ram_mib = False, 0
    server = xllamacpp.Server(params)
    print(f"ready at {server.listening_address}: {xllamacpp.get_system_info()}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
