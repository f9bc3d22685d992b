"""The decoder against what a device can do at most: `generation.py --device cuda` runs this.

Llama shapes with random weights in bf16, 16 prompts of 512 tokens with 16 rollouts of 512 tokens each,
against Hugging Face's `generate` and against the limit of `limits.py`: of each part the longer of reading, at
the bandwidth of a large copy, and computing, at the rate of a large product. Wall time, since the device
works while the processor waits.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from decoders import HuggingFace, Ours, Workload
from limits import parts_of

from rs_aligner.generation.engines import new_decoder
from rs_aligner.model import runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture

_SHARED = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {**_SHARED, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True},
    "8b": {**_SHARED, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "head_dim": 128, "tie_word_embeddings": False},
    "tiny": {**_SHARED, "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 8, "head_dim": 8, "tie_word_embeddings": True},
}  # fmt: skip  # a model a row


class OursAtRandom(Ours):
    """Our decoder on weights made up on the device."""

    def __init__(self, work: Workload, rt: runtime.Runtime) -> None:
        arch = read_architecture(work.folder)
        self.model = build_model(arch, transformer_config(arch, rt, dtype=torch.bfloat16), rt).eval()
        self.decoder, self.work = new_decoder(self.model, arch, rt), work


class HuggingFaceAtRandom(HuggingFace):
    """The same shape there."""

    def __init__(self, work: Workload, device: torch.device) -> None:
        self.work = work
        config = transformers.AutoConfig.from_pretrained(work.folder)
        with device:
            self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
            self.ids = torch.tensor([list(prompt) for prompt in work.prompts])
            self.mask = torch.ones_like(self.ids)
        self.model.generation_config.eos_token_id = self.model.config.eos_token_id = None


def compare(
    shape: str,
    accelerator: str,
    repeats: int,
    *,
    num_prompts: int = 16,
    num_rollouts: int = 16,
    prompt_length: int = 512,
    max_length: int = 512,
) -> dict[str, Any]:
    """Seconds of each side and of the limit, and the medians of what they are to ours."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch, runtime.start(accelerator=accelerator) as rt:
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SHAPES[shape]}
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        prompts = torch.randint(3, config["vocab_size"], (num_prompts, prompt_length)).tolist()
        work = Workload(shape, Path(scratch), [tuple(p) for p in prompts], num_rollouts, max_length, None)
        sides: dict[str, Callable[[], Callable[[], int]]] = {
            "ours": lambda: OursAtRandom(work, rt),
            "hf": lambda: HuggingFaceAtRandom(work, rt.device),
        }
        seconds = {name: _measured(side, rt.device, repeats) for name, side in sides.items()}
        parts = parts_of(read_architecture(work.folder), list(map(len, prompts)), num_rollouts, max_length)
        speeds = bandwidth(rt.device), product_rate(rt.device)
        limits = {name: part.seconds(*speeds) for name, part in parts.items()}
        limit = sum(limits.values())
        return {
            "device": torch.cuda.get_device_name() if rt.device.type == "cuda" else "cpu",
            "seconds": {**seconds, "limit": limit},
            "limit by part": limits,
            "bytes and operations a second": speeds,
            "hf / ours": median(seconds["hf"]) / median(seconds["ours"]),
            "share of the limit": limit / median(seconds["ours"]),
        }


def _measured(make: Callable[[], Callable[[], int]], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each repeat of a side, which has the device for itself: no room is taken by the other."""
    side = make()
    side()  # warms up
    seconds = [_seconds(side, device) for _ in range(repeats)]
    del side
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return seconds


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy that is larger than the caches."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source), device) for _ in range(10))


def product_rate(device: torch.device) -> float:
    """Operations a second of a large product in bf16."""
    size = 8192 if device.type == "cuda" else 512
    one, other = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(one)
    return 2 * size**3 / min(_seconds(lambda: torch.mm(one, other, out=out), device) for _ in range(10))


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
