"""What GPT-2 has beyond other families: folders as people have them, its tokenizer, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file, save_file

from rs_aligner.config import GenerationConfig
from rs_aligner.config.layout import in_common_words, model_positions
from rs_aligner.config.training import ModelBase
from rs_aligner.generation.engines import new_decoder
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.lora_spec import peft_names, resolve
from rs_aligner.model.memory import stage_parameters
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import check_tensors, num_parameters
from rs_aligner.model.tokenizer import Tokenizer
from tests.model.test_families import token_ids
from tests.tiny import OF_GPT2, save_gpt2_tokenizer, save_random, save_tiny

pytestmark = pytest.mark.timeout(120)
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("gpt2", tmp_path_factory.mktemp("gpt2") / "gpt2")


def changed(folder: Path, there: Path, **changes: object) -> Path:
    """A folder with a config alone, with changes; returns it."""
    config = json.loads((folder / "config.json").read_text())
    there.mkdir(exist_ok=True)
    (there / "config.json").write_text(json.dumps({**config, **changes}))
    return there


def logits(folder: Path, rt: Runtime, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=dtype), rt).eval()
    huggingface.load_weights(folder, model, arch, rt)
    tokens = token_ids(2, 40)
    with torch.no_grad():
        found: torch.Tensor = model(tokens, torch.arange(40).expand_as(tokens), None)
    return found


def test_a_folder_as_the_first_ones_were_is_the_same_model(folder: Path, rt: Runtime, tmp_path: Path) -> None:
    """The trunk's tensors alone, masks among them; `n_ctx`, and nothing of ties."""
    old = changed(folder, tmp_path / "old", n_ctx=128, task_specific_params={"text-generation": {}})
    config = json.loads((old / "config.json").read_text())
    for key in ("tie_word_embeddings", "n_inner", "add_cross_attention", "reorder_and_upcast_attn", "dtype"):
        config.pop(key, None)
    (old / "config.json").write_text(json.dumps({**config, "n_inner": 80}))
    bare = {name.removeprefix("transformer."): t for name, t in load_file(folder / FILE).items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 128, 128).tril().to(torch.uint8) for i in range(4)}
    more = {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(4)}
    save_file({**bare, **masks, **more}, old / FILE, {"format": "pt"})
    assert read_architecture(old) == read_architecture(folder)
    found = logits(old, rt)
    assert torch.equal(found, logits(folder, rt))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(old, dtype=torch.float32)
    with torch.no_grad():
        assert (found - theirs(token_ids(2, 40)).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    "settings",
    [{"activation_function": "gelu"}, {"tie_word_embeddings": False}, {"n_inner": None}],
    ids=lambda one: next(iter(one)),
)
def test_variants_have_the_logits_of_transformers(
    rt: Runtime, tmp_path: Path, settings: dict[str, object]
) -> None:
    config = transformers.GPT2Config(**{**OF_GPT2, "n_layer": 2, **settings})
    folder = save_random(config, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert (logits(folder, rt) - theirs(token_ids(2, 40)).logits).abs().max() < 1e-4
    assert num_parameters(read_architecture(folder)) == theirs.num_parameters()


def test_in_bf16_positions_are_of_the_type_of_all_weights(folder: Path, rt: Runtime) -> None:
    found = logits(folder, rt, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert (found.float() - logits(folder, rt)).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn True is not supported; False is"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported; False is"),
        ({"scale_attn_weights": False}, "scale_attn_weights False is not supported; True is"),
        ({"activation_function": "relu"}, "activation_function 'relu' is not supported; 'gelu_new' or"),
        ({"n_head": 5}, "n_head 5 is not supported; a number that divides n_embd 32 is"),
        ({"n_positions": None}, "n_positions must be set to a whole number above 0"),
        ({"n_inner": "4x"}, "n_inner '4x' is not supported; null or a whole number above 0 is"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon None is not supported; a number above 0 is"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(
    folder: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    there = changed(folder, tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(f"{there / 'config.json'}: {said}")):
        read_architecture(there)


def test_tensors_of_cross_attention_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    there = changed(folder, tmp_path)
    name = "transformer.h.1.crossattention.c_attn.weight"
    save_file({**load_file(folder / FILE), name: torch.ones(32, 64)}, there / FILE)
    with pytest.raises(
        ValueError, match=f"a gpt2 model as its config.json describes it does not have: {name}"
    ):
        check_tensors(there, read_architecture(there))


def test_its_positions_bound_the_sequence_and_its_sizes_the_layout(folder: Path) -> None:
    made = in_common_words(json.loads((folder / "config.json").read_text()))
    assert model_positions(str(folder)) == read_architecture(folder).max_positions == 128
    tree = {"encoder_seq_length": 129, "tensor_model_parallel_size": 3, "pipeline_model_parallel_size": 3}
    config = ModelBase.model_validate({**tree, "data": {"data_prefix": {"train": "x"}}})
    told = " ".join(map(str, config.misfits("model", made)))
    assert "model.encoder_seq_length is 129: the policy was made for at most 128 positions" in told
    assert "should divide the policy's 4 attention heads" in told
    assert "should divide the policy's 4 layers" in told


def test_a_vocabulary_that_ranks_cannot_share_is_told_with_the_way_there(folder: Path) -> None:
    """50,257 has no use for tensor parallelism."""
    made = {**json.loads((folder / "config.json").read_text()), "vocab_size": 50257}
    tree = {"tensor_model_parallel_size": 2, "data": {"data_prefix": {"train": "x"}}}
    (told,) = ModelBase.model_validate(tree).misfits("model", made)
    words = "model.tensor_model_parallel_size is 2: should divide the policy's vocabulary, 50257"
    assert str(told).startswith(words)
    assert "model.resize_token_embeddings(50304)" in str(told)


def test_positions_are_on_the_first_stage_only(folder: Path) -> None:
    arch = read_architecture(folder)
    whole, (first, last) = stage_parameters(arch, 1, 1)[0], stage_parameters(arch, 1, 2)
    table, positions, norm = 96 * 32, 128 * 32, 2 * 32
    assert whole == num_parameters(arch)
    assert first - last == positions - norm
    assert first + last == whole + table  # tied: the last stage has it again


def test_kernels_decline_it_by_name(folder: Path, rt: Runtime) -> None:
    arch = read_architecture(folder)
    model: GPTModel = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt)
    assert new_decoder(model, arch, rt).description == "torch"
    words = (
        "kernels: it does not know layer_norm, learnt_positions, mlp_bias, plain_mlp, projection_bias of gpt2"
    )
    with pytest.raises(ValueError, match=words):
        new_decoder(model, arch, rt, GenerationConfig(engine="kernels"))


def test_adapters_are_named_as_peft_names_them(folder: Path) -> None:
    arch = read_architecture(folder)
    everything = resolve(["all"], arch)
    assert everything == ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert peft_names(everything, arch) == ["c_attn", "c_proj", "c_fc"]
    assert resolve(["c_proj"], arch) == ("attn.c_proj", "mlp.c_proj")
    assert peft_names(resolve(["attention"], arch), arch) == ["c_attn", "attn.c_proj"]
    with pytest.raises(ValueError, match=r"single matrices: c_attn, attn\.c_proj, c_fc, mlp\.c_proj"):
        resolve(["q_proj"], arch)


def test_its_tokenizer_has_one_token_for_begin_and_end_and_puts_none_in_front(
    folder: Path, tmp_path: Path
) -> None:
    """Byte pairs from `vocab.json` and `merges.txt`, as the first folders have them."""
    there = changed(folder, tmp_path / "old", eos_token_id=0, bos_token_id=0)
    save_gpt2_tokenizer(there)
    tokenizer = Tokenizer(there)
    ids = tokenizer.encode(" to be, é")
    assert tokenizer.decode(ids) == " to be, é"
    assert 0 not in ids
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (0, (0,), None)
    assert tokenizer.closing(False) == (0,)
