"""Checkpoints of Megatron-LM, Megatron Bridge and NeMo, looked at as closely as others are."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from safetensors.torch import load_file

from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.folder import fingerprint, read_model_folder
from rs_aligner.model.opened import open_tensors
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import check_tensors
from rs_aligner.model_folder import problem_with
from tests import megatron_checkpoints as published
from tests.tiny import save_tiny, save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)
FILE = "model.safetensors"
TOKENS = torch.tensor([[5, 17, 2, 90, 41, 41, 8, 63, 30, 77, 1, 12]])


def check(folder: Path) -> None:
    check_tensors(folder, read_architecture(folder))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    with open_tensors(folder) as opened:
        return {name: opened.get_slice(name).clone() for name in opened.header()}


class Made:
    """A model's folder without weights, and these as Megatron names them."""

    def __init__(self, folder: Path, *, family: str = "qwen2") -> None:
        self.folder = save_tiny(family, folder)
        self.weights: dict[str, torch.Tensor] = load_file(folder / FILE)
        (folder / FILE).unlink()
        self.config = transformers.AutoConfig.from_pretrained(folder)
        self.parameters = published.megatron_tensors(self.weights, self.config)

    def write(self, place: Path, prefix: str = "", **more: Any) -> Path:
        numbered = more.pop("numbered", False)
        state = published.sharded(self.parameters, prefix, numbered=numbered)
        return published.save(place, {**state, **published.training_state(self.parameters, prefix), **more})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, rt: Runtime) -> Made:
    """One of Megatron-LM's, in the folder of its iteration."""
    made = Made(tmp_path_factory.mktemp("made") / "qwen2")
    args = published.arguments(made.config)
    made.write(made.folder / "iter_0000010", args=args, iteration=10, checkpoint_version=3.0)
    (made.folder / "latest_checkpointed_iteration.txt").write_text("10\n")
    return made


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    """A copy of it, for a test to change."""
    shutil.copytree(original.folder, tmp_path / "qwen2")
    copy = Made.__new__(Made)
    vars(copy).update(vars(original), folder=tmp_path / "qwen2")
    return copy


def write_again(made: Made, **how: Any) -> None:
    shutil.rmtree(made.folder / "iter_0000010")
    made.write(made.folder / "iter_0000010", **how)


# What Megatron itself computes


def stock_model(folder: Path, rt: Runtime) -> GPTModel:
    """Megatron's own model with its own layers, as random as `save_tiny` makes one."""
    arch = read_architecture(folder)
    config = transformer_config(arch, rt, dtype=torch.float32)
    config.use_te_activation_func = False  # the config's own function
    is_llama3 = arch.rope.scaling == "llama3"
    with rt.cuda_stand_in():
        model = GPTModel(
            config,
            get_gpt_layer_local_spec(qk_layernorm=arch.qk_norm, normalization="RMSNorm"),
            vocab_size=arch.vocab_size,
            max_sequence_length=arch.max_positions,
            share_embeddings_and_output_weights=arch.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=arch.rope.theta,
            rope_scaling=is_llama3,
            rope_scaling_factor=arch.rope.factor if is_llama3 else 8.0,
        ).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    return model


@torch.no_grad()
def stock_logits(model: GPTModel) -> torch.Tensor:
    length = TOKENS.shape[1]
    mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)[None, None]
    logits: torch.Tensor = model(TOKENS, torch.arange(length)[None], mask, runtime_gather_output=True)
    return logits


def megatron_lm(folder: Path, state: Callable[[str], dict[str, Any]], config: Any) -> None:
    changes = {"use_rope_scaling": config.rope_parameters.get("rope_type") == "llama3"}
    args = published.arguments(config, **changes)
    published.save(folder / "release", {**state(""), "args": args})
    (folder / "latest_checkpointed_iteration.txt").write_text("release")


def bridge(folder: Path, state: Callable[[str], dict[str, Any]], config: Any) -> None:
    published.save(folder / "iter_0000007", state(""))
    published.write_yaml(
        folder / "iter_0000007" / "run_config.yaml", {"model": published.nemo_2(config)["config"]}
    )


def nemo_2(folder: Path, state: Callable[[str], dict[str, Any]], config: Any) -> None:
    published.save(folder / "weights", state("module."))
    published.write_yaml(folder / "context" / "model.yaml", published.nemo_2(config))


def nemo_1(folder: Path, state: Callable[[str], dict[str, Any]], config: Any) -> None:
    inside = folder.parent / f"{folder.name}_inside"
    published.save(inside / "model_weights", state("model."))
    published.write_yaml(inside / "model_config.yaml", published.nemo_1(config))
    published.pack(inside, folder / "model.nemo")


@pytest.mark.parametrize(
    ("family", "write"),
    [("llama", nemo_2), ("llama3", megatron_lm), ("mistral", nemo_1), ("qwen2", bridge), ("qwen3", nemo_2)],
)
def test_the_logits_of_transformers_are_those_that_megatrons_own_model_had(
    tmp_path: Path, rt: Runtime, family: str, write: Callable[..., None]
) -> None:
    folder = Made(tmp_path / "model", family=family).folder
    theirs = stock_model(folder, rt)
    config = transformers.AutoConfig.from_pretrained(folder)
    with rt.cuda_stand_in():
        write(folder, lambda prefix: theirs.sharded_state_dict(prefix=prefix), config)
    assert problem_with(str(folder)) is None
    arch = read_architecture(folder)
    ours = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt)
    huggingface.load_weights(folder, ours, arch, rt)
    huggingface.save_weights(tmp_path / "out", ours, arch, rt, folder)
    assert {one.suffix for one in (tmp_path / "out").iterdir()} == {".json", ".safetensors"}
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    logits, wanted = exported(TOKENS).logits, stock_logits(theirs)
    assert wanted.std() > 0.5
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)


# What was written down of published checkpoints


def is_the_original(folder: Path, weights: dict[str, torch.Tensor]) -> bool:
    check(folder)
    found = tensors_of(folder)
    return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in found)


def test_each_tensor_is_the_one_that_was_written(original: Made) -> None:
    assert is_the_original(original.folder, original.weights)


def test_layers_may_have_keys_of_their_own(made: Made) -> None:
    write_again(made, numbered=True)
    assert is_the_original(made.folder, made.weights)


def test_rows_that_pad_the_vocabulary_are_left_out(made: Made) -> None:
    table, cut = made.parameters["embedding.word_embeddings.weight"]
    assert isinstance(table, torch.Tensor)
    padded = torch.cat([table, torch.full((32, table.shape[1]), 7.0)])
    write_again(made_with(made, {"embedding.word_embeddings.weight": (padded, cut)}))
    assert is_the_original(made.folder, made.weights)


def made_with(made: Made, changes: dict[str, Any]) -> Made:
    """The same, with some of Megatron's parameters replaced, or left out (None)."""
    parameters = {**made.parameters, **changes}
    made.parameters = {key: one for key, one in parameters.items() if one is not None}
    return made


def test_weights_in_bfloat16_come_as_they_are(made: Made) -> None:
    of_16_bits = {
        key: ([one.bfloat16() for one in tensors] if isinstance(tensors, list) else tensors.bfloat16(), cut)
        for key, (tensors, cut) in made.parameters.items()
    }
    write_again(made_with(made, of_16_bits))
    assert is_the_original(made.folder, {name: one.bfloat16() for name, one in made.weights.items()})


def test_a_parameter_that_is_not_there_is_told_by_the_tensors_that_lack(made: Made) -> None:
    write_again(made_with(made, {"decoder.layers.mlp.linear_fc2.weight": None}))
    with pytest.raises(ValueError, match=r"lacks the tensors model\.layers\.0\.mlp\.down_proj\.weight"):
        check(made.folder)


def test_a_parameter_that_nobody_reads_is_told_by_megatrons_name(made: Made) -> None:
    key = "decoder.layers.mlp.linear_fc2.bias"
    write_again(made_with(made, {key: ([torch.ones(32)] * 4, None)}))
    with pytest.raises(ValueError, match=f"1 tensor that a qwen2 model .* does not have: {key}"):
        check(made.folder)


def test_an_output_layer_of_its_own_beside_a_tied_embedding_is_told(made: Made) -> None:
    write_again(made_with(made, {"output_layer.weight": (torch.randn(96, 32), 0)}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        check(made.folder)


def test_more_layers_than_the_config_says_are_told(made: Made) -> None:
    key = "decoder.layers.mlp.linear_fc2.weight"
    tensors, cut = made.parameters[key]
    write_again(made_with(made, {key: ([*tensors, tensors[0]], cut)}))
    with pytest.raises(ValueError, match=r"linear_fc2.weight \[5, 32, 80\] cannot be what .*\[4, 32, 80\]"):
        check(made.folder)


def test_a_model_that_is_none_of_megatrons_gpt_is_told(made: Made) -> None:
    write_again(made_with(made, {"embedding.word_embeddings.weight": None}))
    with pytest.raises(ValueError, match="it is no checkpoint of one of Megatron's GPT models"):
        check(made.folder)


def test_a_mixture_of_experts_is_told_with_its_converter(tmp_path: Path, made: Made) -> None:
    save_tiny("mixtral", tmp_path / "mixtral")
    shutil.copy(tmp_path / "mixtral" / "config.json", made.folder)
    with pytest.raises(ValueError, match=r"read for llama, .*, and not for mixtral.*AutoBridge\.export_ckpt"):
        check(made.folder)


# Settings that shapes do not tell


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", 8),
        ("num_query_groups", 4),
        ("rotary_base", 1000000),
        ("rotary_percent", 0.5),
        ("norm_epsilon", 1e-5),
        ("normalization", "LayerNorm"),
        ("swiglu", False),
        ("use_rope_scaling", True),
        ("rotary_seq_len_interpolation_factor", 4),
        ("position_embedding_type", "learned_absolute"),
        ("untie_embeddings_and_output_weights", True),
        ("apply_layernorm_1p", True),
        ("rotary_interleaved", True),
        ("num_experts", 8),
    ],
)
def test_a_setting_of_another_model_is_told_with_both_values(made: Made, name: str, value: Any) -> None:
    write_again(made, args=published.arguments(made.config, **{name: value}))
    with pytest.raises(ValueError, match=f"says {name}: {value!r}, which does not fit .*config.json"):
        check(made.folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_query_groups", 4),
        ("rotary_base", 500000.0),
        ("activation_func", {"_target_": "torch.nn.functional.gelu"}),
        ("low_freq_factor", 1.0),
    ],
)
def test_settings_of_nemo_are_held_against_the_config(made: Made, name: str, value: Any) -> None:
    published.write_yaml(
        made.folder / "context" / "model.yaml", published.nemo_2(made.config, **{name: value})
    )
    with pytest.raises(ValueError, match=f"context/model.yaml says {name}: .*does not fit"):
        check(made.folder)


def test_heads_that_each_have_a_key_of_their_own_are_no_group_of_one(tmp_path: Path, rt: Runtime) -> None:
    """Megatron-LM's default is one group, which does not count."""
    made = Made(tmp_path / "model", family="llama")
    config = made.config
    args = published.arguments(config, group_query_attention=False, num_query_groups=1)
    made.write(made.folder / "release", args=args)
    with pytest.raises(ValueError, match="num_query_groups: 4, which does not fit"):
        check(made.folder)


def test_arguments_among_the_shards_are_read(made: Made) -> None:
    """Where Megatron has them since 0.19, and no common.pt."""
    args = published.arguments(made.config, rotary_base=7)
    common = ShardedObject("common_state", {"args": args}, (1,), (0,))
    write_again(made, common=common)
    (made.folder / "iter_0000010" / "common.pt").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="args says rotary_base: 7, which does not fit"):
        check(made.folder)


def test_a_checkpoint_without_settings_is_taken_at_its_shapes_and_the_log_says_so(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    write_again(made)
    with caplog.at_level(logging.INFO, "rs_aligner"):
        check(made.folder)
    assert any("iter_0000010 says nothing of its model" in line for line in caplog.messages)


# What is damaged, or would act


class Acts:
    """Says that it was run, to whoever unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_what_would_act_among_the_settings_is_not_run(made: Made, tmp_path: Path) -> None:
    args = published.arguments(made.config, acts=Acts(tmp_path / "run"), rotary_base=7)
    write_again(made, args=args, beside=Acts(tmp_path / "run"))
    with pytest.raises(ValueError, match="rotary_base: 7, which does not fit"):
        check(made.folder)
    assert not (tmp_path / "run").exists()


def test_what_would_act_in_the_description_of_the_shards_is_not_run(made: Made, tmp_path: Path) -> None:
    file = made.folder / "iter_0000010" / ".metadata"
    found = pickle.loads(file.read_bytes())
    found.planner_data = Acts(tmp_path / "run")
    file.write_bytes(pickle.dumps(found))
    assert is_the_original(made.folder, made.weights)
    file.write_bytes(pickle.dumps(Acts(tmp_path / "run")))
    with pytest.raises(ValueError, match=r"\.metadata describes no checkpoint"):
        check(made.folder)
    assert not (tmp_path / "run").exists()


def test_a_tensor_that_would_act_is_refused(made: Made, tmp_path: Path) -> None:
    file = made.folder / "iter_0000010" / ".metadata"
    found = pickle.loads(file.read_bytes())
    index = next(one for one in found.storage_data if one.fqn == "decoder.final_layernorm.weight")
    info = found.storage_data[index]
    torch.save(Acts(tmp_path / "run"), made.folder / "iter_0000010" / "acts.distcp")
    info.relative_path, info.offset = "acts.distcp", 0
    info.length = (made.folder / "iter_0000010" / "acts.distcp").stat().st_size
    file.write_bytes(pickle.dumps(found))
    check(made.folder)  # by its description
    with pytest.raises(ValueError, match=r"final_layernorm\.weight is damaged"):
        tensors_of(made.folder)
    assert not (tmp_path / "run").exists()


def shards(made: Made) -> Iterator[Path]:
    files = sorted((made.folder / "iter_0000010").glob("*.distcp"))
    assert files
    return iter(files)


def test_a_file_that_is_not_there_is_told(made: Made) -> None:
    file = next(shards(made))
    file.rename(file.with_name("away.distcp"))
    with pytest.raises(ValueError, match=f"lacks {file.name}, which its .metadata names: fetch it"):
        check(made.folder)


def test_a_file_that_was_cut_short_is_told(made: Made) -> None:
    for file in shards(made):
        os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"distcp was cut short: fetch it again"):
        check(made.folder)


@pytest.mark.parametrize(
    ("content", "words"), [('{"sharded_backend": "zarr"}', "format 'zarr'"), ("", "without")]
)
def test_another_format_is_told_with_its_converter(made: Made, content: str, words: str) -> None:
    (made.folder / "iter_0000010" / "metadata.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{words}.*only Megatron's torch_dist is read.*AutoBridge"):
        check(made.folder)


def test_another_bit_in_a_shard_is_another_fingerprint(made: Made) -> None:
    before, file = fingerprint(made.folder), next(shards(made))
    assert before == fingerprint(made.folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert fingerprint(made.folder) != before


# Archives


@pytest.fixture
def archive(made: Made) -> Path:
    """The same as NeMo packs it, beside the config."""
    inside = made.folder.parent / "inside"
    inside.mkdir()
    (made.folder / "iter_0000010").rename(inside / "model_weights")
    (made.folder / "latest_checkpointed_iteration.txt").unlink()
    published.write_yaml(inside / "model_config.yaml", published.nemo_1(made.config))
    published.pack(inside, made.folder / "model.nemo")
    return made.folder / "model.nemo"


def test_an_archive_is_read_where_it_is(archive: Path, original: Made) -> None:
    before = sorted(archive.parent.iterdir())
    assert problem_with(str(archive.parent)) is None
    assert is_the_original(archive.parent, original.weights)
    assert sorted(archive.parent.iterdir()) == before


def test_an_archive_elsewhere_is_read_by_a_link(archive: Path, original: Made, tmp_path: Path) -> None:
    archive.rename(tmp_path / "model.nemo")
    archive.symlink_to(tmp_path / "model.nemo")
    assert is_the_original(archive.parent, original.weights)


def test_settings_in_an_archive_are_held_against_the_config(archive: Path, original: Made) -> None:
    inside = archive.parents[1] / "inside"
    settings = published.nemo_1(original.config, activation="geglu")
    published.write_yaml(inside / "model_config.yaml", settings)
    published.pack(inside, archive)
    with pytest.raises(ValueError, match=r"model_config.yaml says activation: 'geglu', which does not fit"):
        check(archive.parent)


def test_a_compressed_archive_is_told_how_to_unpack(archive: Path) -> None:
    published.pack(archive.parents[1] / "inside", archive, "w:gz")
    with pytest.raises(ValueError, match=r"compressed archive.*mkdir NEW; tar -xf .*model.nemo -C NEW"):
        check(archive.parent)


def test_an_archive_of_older_weights_is_told_with_its_converter(archive: Path) -> None:
    inside = archive.parents[1] / "inside"
    shutil.rmtree(inside / "model_weights")
    (inside / "model_weights.ckpt").write_bytes(b"PK")
    published.pack(inside, archive)
    with pytest.raises(ValueError, match=r"has no sharded weights .*convert_<model>_nemo_to_hf\.py"):
        check(archive.parent)


def test_an_archive_that_was_cut_short_is_told(archive: Path) -> None:
    os.truncate(archive, archive.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"model\.nemo (is damaged|lacks|: )"):
        check(archive.parent)


# All of it


def test_a_model_folder_is_looked_at_whole(tmp_path: Path, rt: Runtime) -> None:
    """With its tokenizer, as each command does first."""
    folder = save_tiny_with_tokenizer(tmp_path / "model")
    weights = load_file(folder / FILE)
    (folder / FILE).unlink()
    config = transformers.AutoConfig.from_pretrained(folder)
    parameters = published.megatron_tensors(weights, config)
    published.save(folder / "weights", published.sharded(parameters, "module."))
    tokenizer, arch = read_model_folder(str(folder), "key")
    assert (tokenizer.num_ids, arch.vocab_size) == (258, 258)
