"""A Hugging Face config is read completely, and what it asks for beyond the supported is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from rs_aligner.config.layout import model_positions
from rs_aligner.model.architecture import NO_POSITIONS, WINDOW, Architecture, Rope
from rs_aligner.model.families import registry
from rs_aligner.model.families.refused import REFUSED
from rs_aligner.model.families.registry import read_architecture
from tests.tiny import FAMILIES, LLAMA3_ROPE, LONGROPE, YARN_ROPE

LLAMA3 = Rope(500000.0, "llama3", 8.0, original_positions=8192, slow=1.0, fast=4.0)


def config_of(family: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(FAMILIES[family]().to_json_string(use_diff=False))
    return config


def read(folder: Path, config: dict[str, Any]) -> Architecture:
    (folder / "config.json").write_text(json.dumps(config))
    return read_architecture(folder)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"tied_embeddings": True, "rope": Rope(), "head_dim": 8, "qkv_bias": False}),
        ("llama3", {"tied_embeddings": False, "rope": LLAMA3}),
        ("mistral", {"head_dim": 16, "tied_embeddings": False, "rope": Rope()}),
        ("qwen2", {"qkv_bias": True, "qk_norm": False, "tied_embeddings": True}),
        ("qwen3", {"qkv_bias": False, "qk_norm": True, "head_dim": 16}),
    ],
)
def test_sizes_and_switches_of_each_family_are_read(
    tmp_path: Path, family: str, expected: dict[str, Any]
) -> None:
    arch = read(tmp_path, config_of(family))
    assert (arch.vocab_size, arch.hidden_size, arch.num_layers) == (96, 32, 4)
    assert (arch.num_heads, arch.num_kv_heads, arch.intermediate_size) == (4, 2, 80)
    assert {name: getattr(arch, name) for name in expected} == expected


def test_configs_of_older_transformers_are_read_the_same(tmp_path: Path) -> None:
    """Before version 5, the rotary base stood alone and its scaling apart."""
    new = config_of("llama3")
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    assert read(tmp_path, {**old, "rope_theta": 500000.0, "rope_scaling": scaling}) == read(tmp_path, new)
    plain = config_of("llama")
    old = {key: value for key, value in plain.items() if key != "rope_parameters"}
    assert read(tmp_path, {**old, "rope_theta": 10000.0, "rope_scaling": None}) == read(tmp_path, plain)
    linear = {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 4}}
    assert read(tmp_path, {**old, **linear}).rope == Rope(5.0, "linear", 4.0)


@pytest.mark.parametrize(
    ("family", "change", "positions"),
    [
        ("mistral", {"sliding_window": None}, 128),
        ("mistral", {"sliding_window": 48}, 128),
        ("mistral", {"sliding_window": 4096}, 128),
        ("qwen2", {"sliding_window": 48, "use_sliding_window": False}, 128),
        ("qwen2", {"sliding_window": 48, "use_sliding_window": True}, 128),
        ("llama", {"rope_parameters": YARN_ROPE}, 128),
        ("llama", {"rope_parameters": {**YARN_ROPE, "factor": 8}}, 256),
        ("llama", {"rope_parameters": YARN_ROPE, "original_max_position_embeddings": 64}, 256),
        ("llama", {"rope_parameters": {**YARN_ROPE, "factor": 2}}, 128),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 3}}, 384),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 1.5}}, 192),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, 128),
        ("llama3", {}, 16384),
    ],
)
def test_a_model_is_used_for_sequences_as_long_as_its_positions_and_as_far_as_scaling_takes_it(
    tmp_path: Path, family: str, change: dict[str, Any], positions: int
) -> None:
    assert read(tmp_path, {**config_of(family), **change}).max_positions == positions
    assert model_positions(str(tmp_path)) == positions


@pytest.mark.parametrize(
    ("family", "change", "windows"),
    [
        ("mistral", {"sliding_window": None}, ()),
        ("mistral", {"sliding_window": 48}, (48,) * 4),
        ("mistral", {"sliding_window": 128}, ()),  # which hides nothing
        ("qwen2", {"sliding_window": 48}, ()),
        ("qwen2", {"sliding_window": 48, "use_sliding_window": True, "layer_types": None}, ()),
        (
            "qwen3",
            {"sliding_window": 48, "use_sliding_window": True, "layer_types": None, "max_window_layers": 3},
            (None, None, None, 48),
        ),
        (
            "qwen3",
            {
                "sliding_window": 48,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", *["full_attention"] * 3],
            },
            (48, None, None, None),
        ),
        ("smollm3", {}, (None, 24, None, 24)),
        ("phi3", {}, (24,) * 4),
        ("gemma2", {}, (24, None, 24, None)),
        ("gemma2", {"layer_types": None}, (24, None, 24, None)),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 3}, (24, 24, None, 24)),
    ],
)
def test_which_layers_see_a_window_is_what_the_config_says(
    tmp_path: Path, family: str, change: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    arch = read(tmp_path, {**config_of(family), **change})
    assert tuple(kind.window for kind in arch.kinds) == windows
    assert (WINDOW in arch.features) == bool(windows)


def test_a_key_that_is_not_there_means_what_it_means_to_transformers(tmp_path: Path) -> None:
    config = {**config_of("mistral"), "max_position_embeddings": 8192}
    del config["sliding_window"]
    assert read(tmp_path, config).window(0) == transformers.MistralConfig().sliding_window == 4096
    config = config_of("smollm3")
    for key in ("no_rope_layers", "layer_types", "use_sliding_window", "rope_parameters"):
        del config[key]
    arch = read(tmp_path, config)
    assert [kind.rope == NO_POSITIONS for kind in arch.kinds] == [False, True] * 2  # its interval is still 2
    assert arch.rope.theta == 2000000


def test_layers_with_a_window_may_have_other_angles_in_both_spellings(tmp_path: Path) -> None:
    new = config_of("gemma3")
    arch = read(tmp_path, new)
    local, full = Rope(10000.0), Rope(1000000.0, "linear", 8.0)
    assert [kind.rope or arch.rope for kind in arch.kinds] == [local, full] * 2
    assert arch.ropes == (local, full)
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    more = {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}
    assert read(tmp_path, {**old, **more, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}) == arch
    wide = read(tmp_path, {**new, "sliding_window": 4096})
    assert [kind.window for kind in wide.kinds] == [None] * 4
    assert wide.ropes == arch.ropes, "they have them also where the window hides nothing"


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        (
            "llama",
            {"model_type": "bloom"},
            ["model_type", "'bloom'", "gpt2, granite, llama, mistral, mixtral, "],
        ),
        (
            "llama",
            {"model_type": "gpt_oss"},
            ["'gpt_oss'", "it has attention sinks", "one of gemma2, "],
        ),
        ("llama", {"model_type": "deepseek_v3"}, ["'deepseek_v3'", "it has latent attention", "llama, "]),
        ("llama", {"model_type": None}, ["model_type", "None"]),
        ("mistral", {"sliding_window": "4096"}, ["sliding_window '4096'", "null or a number"]),
        ("mistral", {"sliding_window": 0}, ["sliding_window 0", "null or a number"]),
        ("mistral", {"layer_types": ["full_attention"] * 4}, ["layer_types", "None is"]),
        ("llama", {"sliding_window": 48}, ["sliding_window 48", "None is"]),
        ("qwen2", {"use_sliding_window": "yes"}, ["use_sliding_window 'yes'", "True or False"]),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, ["layer_types", "full_attention"]),
        ("qwen3", {"layer_types": ["full_attention"]}, ["layer_types", "a list of 4"]),
        ("olmo2", {"mlp_bias": True}, ["mlp_bias", "False"]),
        ("phi3", {"attention_bias": True}, ["attention_bias", "False"]),
        ("phi3", {"rope_parameters": YARN_ROPE}, ["rope_type 'yarn'", "'longrope'"]),
        (
            "phi3",
            {"rope_parameters": {**LONGROPE, "short_factor": [1.0]}},
            ["short_factor of 1 numbers", "8"],
        ),
        ("phi3", {"rope_parameters": {**LONGROPE, "short_factor": None}}, ["short_factor None", "a list"]),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.1}}, ["partial_rotary_factor 0.1", "pairs"]),
        ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention", "False"]),
        ("gemma2", {"hidden_activation": "silu"}, ["hidden_activation 'silu'", "gelu_pytorch_tanh"]),
        ("gemma2", {"attn_logit_softcapping": -1}, ["attn_logit_softcapping -1", "above 0"]),
        ("gemma3", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping 50.0", "None is"]),
        ("gemma3", {"model_type": "gemma3"}, ["'gemma3'", "a tower for images", "gemma3_text"]),
        ("granite", {"logits_scaling": 0}, ["logits_scaling 0", "above 0"]),
        ("granite", {"residual_multiplier": "0.2"}, ["residual_multiplier '0.2'", "above 0"]),
        ("qwen2", {"mlp_bias": True}, ["mlp_bias", "True", "False"]),
        ("mistral", {"attention_bias": True}, ["attention_bias", "True", "False"]),
        ("llama", {"attention_bias": "yes"}, ["attention_bias", "'yes'", "True or False"]),
        ("llama", {"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "'silu'"]),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, ["rope_type", "'longrope'", "'yarn'"]),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, ["factor None", "dynamic"]),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, ["factor None", "yarn", "1 or more"]),
        ("llama", {"rope_parameters": {**YARN_ROPE, "beta_slow": 32}}, ["beta_fast 32", "yarn", "above 32"]),
        (
            "llama",
            {"rope_parameters": {**YARN_ROPE, "attention_factor": 0}},
            ["attention_factor 0", "above 0"],
        ),
        ("llama", {"rope_parameters": {**YARN_ROPE, "truncate": "no"}}, ["truncate 'no'", "True or False"]),
        (
            "llama",
            {"rope_parameters": {**YARN_ROPE, "original_max_position_embeddings": 32.5}},
            ["original_max_position_embeddings 32.5", "a number of tokens"],
        ),
        (
            "llama",
            {"rope_parameters": {**YARN_ROPE, "low_freq_factor": 1.0}},
            ["low_freq_factor", "beta_fast"],
        ),
        ("llama", {"rope_parameters": {"full_attention": {}}}, ["full_attention", "default", "none"]),
        (
            "llama",
            {"rope_parameters": {**YARN_ROPE, "partial_rotary_factor": 0.5}},
            ["partial_rotary_factor 0.5"],
        ),
        ("llama", {"rope_scaling": "yarn"}, ["rope_scaling 'yarn'", "an object or null"]),
        ("llama", {"rope_parameters": {"rope_type": ["yarn"]}}, ["rope_type ['yarn']", "'linear'"]),
        ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5", "1.0"]),
        ("llama", {"rope_parameters": {"rope_theta": "1e4"}}, ["rope_theta '1e4'", "above 1"]),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, ["factor None", "linear"]),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, ["factor 0.5", "linear"]),
        ("llama3", {"rope_parameters": {**LLAMA3_ROPE, "low_freq_factor": None}}, ["low_freq_factor None"]),
        (
            "llama3",
            {"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 1}},
            ["high_freq_factor 1", "1 is"],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_not_supported_is_refused_with_its_key_and_what_would_work(
    tmp_path: Path, family: str, change: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError, match="is not supported") as error:
        read(tmp_path, {**config_of(family), **change})
    assert all(word in str(error.value) for word in (*words, str(tmp_path / "config.json")))


def test_what_is_refused_by_name_is_a_name_of_transformers_and_not_read() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    unknown = REFUSED.keys() - CONFIG_MAPPING_NAMES.keys()
    assert unknown <= {"kimi_k2", "kimi_linear"}  # code of their own, which is never run
    assert not REFUSED.keys() & {family.name for family in registry.FAMILIES}


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no config\.json") as error:
        read_architecture(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", '"llama"'])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|should be a JSON object)"):
        read_architecture(tmp_path)
