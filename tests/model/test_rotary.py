"""Frequencies and the factor of cosines and sines are transformers', for each kind of scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rs_aligner.model.architecture import NO_POSITIONS, Rope
from rs_aligner.model.families.rope import read_rope
from rs_aligner.model.rotary import Rotary, frequencies
from rs_aligner.model.runtime import Runtime

pytestmark = pytest.mark.timeout(60)
# head_dim and max_position_embeddings as models have them, and what their configs, or their makers, say of
# scaling; then what no maker has said.
SIZES = {"head_dim": 128, "num_attention_heads": 2, "hidden_size": 256, "max_position_embeddings": 131072}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
CASES: dict[str, dict[str, Any]] = {
    "Llama 3.1": LLAMA3,
    "Llama 3.2": {**LLAMA3, "factor": 32.0},
    "another llama3": {
        **LLAMA3,
        "factor": 3.0,
        "low_freq_factor": 2,
        "original_max_position_embeddings": 512,
    },
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.1, "rope_theta": 10000.0},
    "Qwen2.5": YARN,
    "of a short model": {**YARN, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "of a very short model": {**YARN, "original_max_position_embeddings": 4, "rope_theta": 10000.0},
    "of a model whose ramp has no width": {**YARN, "original_max_position_embeddings": 6, "rope_theta": 1e4},
    "of a small base": {**YARN, "rope_theta": 10.0},
    "of none": {key: value for key, value in YARN.items() if not key.startswith("original")},
    "without whole bounds": {**YARN, "truncate": False, "beta_fast": 16, "beta_slow": 2.5},
    "with a factor": {**YARN, "attention_factor": 0.7},
    "with one scale": {**YARN, "mscale": 0.707},
    "with both scales": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.3, "factor": 40.0},
    "by one": {**YARN, "factor": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_frequencies_are_those_of_transformers(case: str) -> None:
    config = transformers.LlamaConfig(**SIZES, rope_parameters=dict(CASES[case]))
    rope = read_rope(Path("config.json"), json.loads(config.to_json_string(use_diff=False)))
    expected, factor = ROPE_INIT_FUNCTIONS[CASES[case]["rope_type"]](config)
    assert torch.allclose(frequencies(rope, 128), expected, rtol=3e-7, atol=0)
    assert rope.attention_factor == pytest.approx(factor, abs=1e-12)


def test_what_is_not_scaled_is_so_to_the_bit() -> None:
    plain = frequencies(Rope(500000.0), 128)
    expected = 1.0 / (500000.0 ** (torch.arange(0, 128, 2, dtype=torch.float) / 128))
    assert torch.equal(plain, expected)
    for case in ("Llama 3.1", "Qwen2.5"):
        rope = read_rope(
            Path("config.json"), {**SIZES, "rope_parameters": {**CASES[case], "rope_theta": 5e5}}
        )
        found = frequencies(rope, 128)
        assert torch.equal(found[:10], plain[:10])
        assert torch.equal(found[-10:], plain[-10:] / rope.factor)


def test_a_key_beside_the_section_counts_as_in_transformers() -> None:
    config = {**SIZES, "rope_parameters": YARN, "original_max_position_embeddings": 4096}
    assert read_rope(Path("config.json"), config).original_positions == 4096
    made = transformers.LlamaConfig(
        **{**SIZES, "original_max_position_embeddings": 4096}, rope_parameters=dict(YARN)
    )
    made.standardize_rope_params()  # as the formulas do first
    assert made.rope_parameters["original_max_position_embeddings"] == 4096
    both = {**config, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert read_rope(Path("config.json"), both).scaling == "linear"


def test_the_longest_table_is_kept_and_begins_alike_for_every_length(rt: Runtime) -> None:
    rotary = Rotary((Rope(attention_factor=1.5),), 8, rt.device)
    assert rotary(5).shape == (5, 1, 1, 8)
    longer = rotary(20)
    assert longer.shape == (20, 1, 1, 8)
    assert rotary(7).data_ptr() == longer.data_ptr()
    assert torch.equal(rotary(7), Rotary((Rope(attention_factor=1.5),), 8, rt.device)(7))
    cos, sin = rotary.get_cos_sin(20)
    assert torch.equal(longer[:, 0, 0], torch.cat([cos, sin], -1))
    assert torch.allclose(cos**2 + sin**2, torch.tensor(1.5**2))


def test_tables_of_several_positions_lie_side_by_side(rt: Runtime) -> None:
    ropes = (Rope(500.0, attention_factor=1.5), NO_POSITIONS)
    both = Rotary(ropes, 8, rt.device)(20)
    assert torch.equal(both, torch.cat([Rotary((rope,), 8, rt.device)(20) for rope in ropes], -1))
    assert torch.equal(both[..., 8:], torch.tensor([1.0] * 4 + [0.0] * 4).expand(20, 1, 1, 8)), (
        "it turns nothing"
    )
