"""What a further family takes: its file, and its line in the list. Here a Llama under other names.

Its folders have another `model_type` and other names of tensors, and queries, keys and values in one tensor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file, save_file

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families import registry
from rs_aligner.model.families.base import Family, Only, Part, Parts
from rs_aligner.model.families.llama_like import llama_like
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.layouts import stacked
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import check_tensors, num_parameters
from rs_aligner.rollout import Prompt
from tests.drawing import request_of
from tests.model.test_families import NoText
from tests.tiny import save_tiny

# A family's file.

EMBEDDING, HEAD, LAYERS = "trunk.table.weight", "out.weight", "trunk.blocks.{}."
LIKE = llama_like("cousin", "Llama", Only("sliding_window", (None,)))
OUTSIDE = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm.weight": "trunk.norm.weight",
    "lm_head.weight": HEAD,
}


def layer(arch: Architecture) -> Parts:
    parts = LIKE.layer(arch)
    apart = parts["self_attention.linear_qkv.weight"]
    rows = [shape[0] for shape in apart.tensors.values()]
    fused = {"self_attn.qkv.weight": (sum(rows), arch.hidden_size)}
    return {**parts, "self_attention.linear_qkv.weight": Part(fused, stacked(apart.layout, rows))}


def outside(arch: Architecture) -> Parts:
    return {
        name: Part({OUTSIDE[old]: shape for old, shape in part.tensors.items()}, part.layout)
        for name, part in LIKE.outside(arch).items()
    }


COUSIN = replace(
    LIKE, layer=layer, outside=outside, trunk="trunk.", layers=LAYERS, embedding=EMBEDDING, head=HEAD
)

# Its line.


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, COUSIN)


def register(monkeypatch: pytest.MonkeyPatch, family: Family) -> None:
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, family])


@pytest.fixture(params=["llama", "llama3"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A Llama, its embedding tied or not, and the same model as the cousin has it."""
    llama = save_tiny(request.param, tmp_path / "llama")
    cousin = tmp_path / "cousin"
    cousin.mkdir()
    config = json.loads((llama / "config.json").read_text())
    (cousin / "config.json").write_text(json.dumps({**config, "model_type": "cousin"}))
    old = load_file(llama / "model.safetensors")
    new = {OUTSIDE[name]: tensor for name, tensor in old.items() if name in OUTSIDE}
    for number in range(config["num_hidden_layers"]):
        of = f"model.layers.{number}."
        whole = {name.removeprefix(of): tensor for name, tensor in old.items() if name.startswith(of)}
        apart = [whole.pop(f"self_attn.{x}_proj.weight") for x in "qkv"]
        whole["self_attn.qkv.weight"] = torch.cat(apart)
        new |= {LAYERS.format(number) + name: tensor for name, tensor in whole.items()}
    save_file(new, cousin / "model.safetensors", metadata={"format": "pt"})
    return llama, cousin


def load(folder: Path, rt: Runtime) -> tuple[GPTModel, Architecture]:
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder, model, arch, rt)
    return model, arch


def greedy(reference: torch.nn.Module, prompt: Sequence[int], number: int) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(number):
        with torch.no_grad():
            tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_a_further_family_is_read_decoded_and_written(
    folders: tuple[Path, Path], rt: Runtime, tmp_path: Path
) -> None:
    llama, cousin = folders
    reference = transformers.AutoModelForCausalLM.from_pretrained(llama)
    model, arch = load(cousin, rt)
    assert arch == replace(read_architecture(llama), family="cousin")
    assert num_parameters(arch) == reference.num_parameters()

    tokens = torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = model(tokens, torch.arange(40).expand_as(tokens), None)
        assert (logits - reference(tokens).logits).abs().max() < 1e-4

    prompts = [Prompt("a", "", (5, 9, 2)), Prompt("b", "", tuple(range(20, 40)))]
    asked = request_of(prompts, 1, Controls(greedy=True, max_length=8))
    for compiled in (True, False):
        decoder = new_decoder(model, arch, rt, GenerationConfig(engine="kernels" if compiled else "torch"))
        assert decoder.description.startswith("kernels" if compiled else "torch")
        for rollout in generate(decoder, NoText(), asked, seed=1):
            assert rollout.token_ids == greedy(reference, prompts[rollout.group].token_ids, 8)

    huggingface.save_weights(tmp_path / "out", model, arch, rt, cousin)
    before, after = (load_file(folder / "model.safetensors") for folder in (cousin, tmp_path / "out"))
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read_architecture(tmp_path / "out") == arch


def test_what_a_further_family_refuses_is_named(folders: tuple[Path, Path]) -> None:
    _, cousin = folders
    config = json.loads((cousin / "config.json").read_text())
    arch = read_architecture(cousin)
    (cousin / "config.json").write_text(json.dumps({**config, "sliding_window": 4}))
    with pytest.raises(ValueError, match="sliding_window 4 is not supported; None is"):
        read_architecture(cousin)
    tensors = load_file(cousin / "model.safetensors")
    save_file({**tensors, "trunk.blocks.9.more": torch.zeros(1)}, cousin / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not have: trunk\.blocks\.9\.more\. They go up to layer 9"):
        check_tensors(cousin, arch)
    del tensors["trunk.blocks.1.self_attn.qkv.weight"]
    save_file(tensors, cousin / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks the tensor trunk\.blocks\.1\.self_attn\.qkv\.weight"):
        check_tensors(cousin, arch)


def test_an_engine_declines_what_it_does_not_know_of_a_family(
    folders: tuple[Path, Path], rt: Runtime
) -> None:
    model, arch = load(folders[1], rt)
    with pytest.raises(
        ValueError, match=r"cousin model here: kernels: it does not know soft_cap of cousin; torch: "
    ):
        new_decoder(model, replace(arch, features=frozenset({"soft_cap"})), rt)
