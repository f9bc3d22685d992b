"""A training of a tiny model with the memory that was planned for it, beside what it allocated.

On one rank for `test_memory.py` itself, on two by `memory_program.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

from rs_aligner.config import TrainSFTConfig
from rs_aligner.model.activations import Lengths
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.memory import memory_of
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import TrainingRow
from tests.allocations import bytes_beside, counted, live_tensors
from tests.policy.objective_cases import NoText

SIZES = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
WIDE = {**SIZES, "vocab_size": 4096, "num_hidden_layers": 2}
RECOMPUTES: dict[str, dict[str, Any]] = {
    "all kept": {},
    "selective": {"activations_checkpoint_granularity": "selective"},
    "full": {"activations_checkpoint_granularity": "full"},
    "lora": {"peft": {"peft_scheme": "lora"}},
    "lora, full": {"peft": {"peft_scheme": "lora"}, "activations_checkpoint_granularity": "full"},
}
PROMPT, RESPONSE = 100, 156


def save_model(folder: Path, sizes: Mapping[str, int] = MappingProxyType(SIZES)) -> Path:
    """A model of a million weights: large beside what does not grow with them."""
    return save_config(transformers.LlamaConfig(**sizes, tie_word_embeddings=False), folder)


def save_gpt2(folder: Path) -> Path:
    """As many weights in a model whose MLPs have no gates, and with learnt positions."""
    return save_config(
        transformers.GPT2Config(vocab_size=256, n_embd=128, n_layer=6, n_head=8, n_positions=512), folder
    )


def save_config(config: Any, folder: Path) -> Path:
    """A model of a config."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


def beside_the_plan(folder: Path, rt: Runtime, **model: Any) -> dict[str, tuple[int, int]]:
    """Planned and allocated bytes of this rank: what is held, and what a step and a save take besides."""
    settings = {
        "micro_batch_size": 2,
        "global_batch_size": 4 * rt.dp_size,
        "tensor_model_parallel_size": rt.tp_size,
        "pipeline_model_parallel_size": rt.pp_size,
        "data": {"data_prefix": {"train": "unused"}},
        **model,
    }
    tree = {
        "trainer": {"devices": rt.world_size},
        "exp_manager": {"explicit_log_dir": "unused"},
        "pretrained_checkpoint": {"restore_from_path": str(folder)},
        "model": settings,
    }
    config = TrainSFTConfig.model_validate(tree)
    lengths = Lengths(PROMPT + RESPONSE, PROMPT + RESPONSE, RESPONSE)
    planned = memory_of(read_architecture(folder), config, lengths, bf16=False, on_gpu=False)
    tokens = tuple(n % SIZES["vocab_size"] for n in range(PROMPT + RESPONSE))
    row = TrainingRow(tokens[:PROMPT], tokens[PROMPT:])
    before = live_tensors()  # as long as it stands here, none of them goes
    policy = MegatronPolicy(
        *(folder, config.model, rt, NoText()),  # type: ignore[arg-type]  # a stand-in
        optimization=Optimization(lambda step: 1e-4),
    )
    rows = [row] * config.model.global_batch_size
    policy.train(rows)
    held = bytes_beside(before)

    def save(number: int) -> None:
        policy.save(folder / f"{rt.tp_size}" / f"step_{number:06d}", {})

    # Other threads (gloo's, and those that write) keep pieces for as long as they take: the least of several.
    step = min(counted(lambda: policy.train(rows)).most for _ in range(4))
    saving = min(counted(partial(save, number)).most for number in range(4))
    return {
        "held": (planned.held, held),
        "a step": (planned.training - planned.held, step),
        "training": (planned.training, held + step),
        "saving": (planned.saving[min(1, rt.dp_rank)], saving),
    }
