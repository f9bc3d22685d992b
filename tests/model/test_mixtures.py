"""What mixtures of experts have beyond other families: routers, experts, and what of them is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file

from rs_aligner.config import GenerationConfig, TrainSFTConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.model import huggingface
from rs_aligner.model.activations import Lengths, Pass
from rs_aligner.model.experts import mixtures
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.lora_spec import projections, resolve
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import check_tensors, expected
from rs_aligner.policy.batches import Split, collate
from rs_aligner.policy.logits import run_line
from rs_aligner.policy.training import Trainer
from rs_aligner.rollout import TrainingRow
from tests.model.test_families import token_ids
from tests.policy.layout_program import adam, new_trainer, rows
from tests.policy.test_expert_layouts import with_routers_loss
from tests.policy.test_layouts import reference as by_plain_torch
from tests.tiny import FAMILIES, MIXTURES, balanced, by_expert, save_tiny

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=MIXTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("mixtures") / request.param, layers=2)


def test_a_token_goes_to_the_experts_that_transformers_sends_it_to(
    model: GPTModel, reference: torch.nn.Module
) -> None:
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    routers = [mixture.router for mixture in mixtures(model)]
    hooks = [router.register_forward_hook(lambda *hooked: found.append(hooked[2])) for router in routers]
    tokens = token_ids(2, 40)
    with torch.no_grad():
        model(tokens, torch.arange(40).expand_as(tokens), None)
        logits = reference(tokens, output_router_logits=True).router_logits
    for hook in hooks:
        hook.remove()
    per_token = routers[0].per_token
    for (counts, numbers), theirs in zip(found, logits, strict=True):
        by_row = theirs.unflatten(0, tokens.shape).transpose(0, 1).flatten(0, 1)  # ours is time first
        assert torch.equal(numbers, by_row.topk(per_token).indices)
        assert len(numbers.unique()) > per_token
        assert counts.dtype == torch.float32


def test_of_equal_experts_those_with_the_lower_numbers_come_first(model: GPTModel) -> None:
    router = mixtures(model)[0].router
    before = router.weight.detach().clone()
    with torch.no_grad():
        router.weight.copy_(before[:1].expand_as(before))
        _, numbers = router(torch.randn(50, before.shape[1]))
        router.weight.copy_(before)
    assert torch.equal(numbers, torch.arange(router.per_token).expand_as(numbers))


def test_what_a_token_becomes_depends_on_no_other_token(model: GPTModel) -> None:
    """So none is dropped, however many go to one expert."""
    layer = mixtures(model)[0]
    tokens = torch.randn(64, layer.router.weight.shape[1], generator=torch.Generator().manual_seed(2))
    same = tokens[:1].repeat(64, 1)  # all to the same experts
    with torch.no_grad():
        together, alone = layer.mixed(tokens), torch.cat([layer.mixed(token) for token in tokens.split(1)])
        assert (together - alone).abs().max() < 1e-5 * alone.abs().max()
        assert (layer.mixed(same) - alone[0]).abs().max() < 1e-5 * alone.abs().max()


def test_loss_and_gradient_are_those_of_plain_torch(
    folder: Path, model: GPTModel, reference: torch.nn.Module, rt: Runtime
) -> None:
    arch = read_architecture(folder)
    trainer = Trainer(model, model.config, rt, adam(False))
    loss, _ = trainer.gradients(rows(), split=Split(2))
    grads = huggingface.gather_tensors(trainer.ddp.module, arch, rt, of=lambda p: p.main_grad)
    expected_loss, fused = by_plain_torch(reference, "sequence")
    expected = by_expert(fused, MIXTURES[folder.name])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(grads) == set(expected)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 1e-5 * grad.norm(), name


def test_the_routers_own_loss_is_that_of_transformers_over_the_whole_batch(
    folder: Path, rt: Runtime, tmp_path: Path
) -> None:
    other = balanced(folder, tmp_path / "balanced")
    family = folder.name
    expected_loss, of_routers, expected = with_routers_loss(other, family)
    trainer = new_trainer(other, rt, distributed=False)
    for split in (Split(1), Split(3)):
        loss, figures = trainer.gradients(rows(), split=split)
        grads = huggingface.gather_tensors(
            trainer.ddp.module, read_architecture(other), rt, of=lambda p: p.main_grad
        )
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert figures == {"loss/routers": pytest.approx(of_routers, rel=1e-5)}
        for name, grad in expected.items():
            assert (grads[name] - grad).norm() <= 1e-5 * grad.norm(), name


def test_a_pass_keeps_what_the_plan_says(folder: Path, model: GPTModel) -> None:
    """Counted on a CPU; within a model's own weights nothing is kept anew."""
    arch = replace(read_architecture(folder), num_layers=len(model.decoder.layers))
    config = TrainSFTConfig.model_validate(
        {
            "exp_manager": {"explicit_log_dir": "unused"},
            "pretrained_checkpoint": {"restore_from_path": str(folder)},
            "model": {"global_batch_size": 1, "data": {"data_prefix": {"train": "unused"}}},
        }
    )
    row = TrainingRow(tuple(range(4)), tuple(token % 96 for token in range(96)))
    planned = Pass(arch, config, Lengths(len(row), len(row), 96), 0, 4)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = collate([row], 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_line(model, batch, labels=batch.labels)
    logits = 2 * 96 * arch.vocab_size * 4
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - logits
    assert planned.activations == pytest.approx(counted, rel=0.15)


def test_kernels_decline_a_mixture_by_name(folder: Path, model: GPTModel, rt: Runtime) -> None:
    arch = read_architecture(folder)
    assert new_decoder(model, arch, rt).description == "torch"
    with pytest.raises(ValueError, match=rf"kernels: it does not know experts of {arch.family}"):
        new_decoder(model, arch, rt, GenerationConfig(engine="kernels"))


def test_adapters_are_of_the_attention_only(folder: Path) -> None:
    arch = read_architecture(folder)
    assert resolve(["all"], arch) == resolve(["attention"], arch)
    assert len([name for names in projections(arch).values() for name in names]) == 4
    with pytest.raises(ValueError, match="Experts, embeddings and output layer are not adapted"):
        resolve(["mlp_fc1"], arch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 is more than the model's 4 experts"),
        ({"num_experts_per_tok": None}, "num_experts_per_tok None is not supported; a whole number"),
        ({"output_router_logits": 1.5}, "output_router_logits 1.5 is not supported; True or False is"),
        ({"router_aux_loss_coef": -1}, "router_aux_loss_coef -1 is not supported; a number of at least 0"),
        ({"num_local_experts": 0}, "num_local_experts 0 is not supported; a whole number above 0 is"),
    ],
)
def test_experts_that_cannot_be_are_refused_by_their_key(
    folder: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    assert_refused(folder, tmp_path, changes, said)


def assert_refused(folder: Path, tmp_path: Path, changes: dict[str, object], said: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'config.json'}: {said}")):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mlp_only_layers": 1}, "mlp_only_layers 1 is not supported; a list of layers is"),
        ({"mlp_only_layers": ["1"]}, "mlp_only_layers ['1'] is not supported; a list of layers is"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step 0 is not supported; a whole number above 0 is"),
        (
            {"decoder_sparse_step": 25},
            "with mlp_only_layers [] and decoder_sparse_step 25 none of its 24 layers has experts",
        ),
        ({"norm_topk_prob": 1.5}, "norm_topk_prob 1.5 is not supported; True or False is"),
        ({"num_experts": 5}, "num_local_experts 128 and num_experts 5 say the same and differ"),
        ({"moe_intermediate_size": "x"}, "moe_intermediate_size 'x' is not supported; a whole number"),
    ],
)
def test_what_of_qwens_experts_is_not_read_is_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    transformers.Qwen3MoeConfig().save_pretrained(tmp_path / "model")
    assert_refused(tmp_path / "model", tmp_path, changes, said)


def test_experts_are_counted_in_the_spellings_of_transformers_4_and_5(tmp_path: Path) -> None:
    transformers.Qwen3MoeConfig().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    experts = read_architecture(tmp_path).experts
    config["num_experts"] = config.pop("num_local_experts")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert experts == read_architecture(tmp_path).experts
    assert experts is not None
    assert (experts.number, experts.per_token, experts.normalises) == (128, 8, False)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({"mlp_only_layers": [0, 3, 7]}, [0, 3]),
        ({"decoder_sparse_step": 2}, [0, 2]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [0, 2, 3]),
    ],
)
def test_layers_without_experts_are_those_of_transformers(
    tmp_path: Path, changes: dict[str, Any], dense: list[int]
) -> None:
    config = FAMILIES["qwen3 moe dense"]()
    for key, value in {"mlp_only_layers": [], **changes}.items():
        setattr(config, key, value)
    config.save_pretrained(tmp_path)
    arch = read_architecture(tmp_path)
    assert [number for number, one in enumerate(arch.stage(0, 1)) if one.experts is None] == dense
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    assert {
        name: tuple(one.shape) for name, one in by_expert(theirs, MIXTURES["qwen3 moe"]).items()
    } == expected(arch)


def test_experts_that_are_stacked_are_refused_with_what_unstacks_them(folder: Path, tmp_path: Path) -> None:
    arch = read_architecture(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    with pytest.raises(ValueError, match="its experts are stacked") as refused:
        check_tensors(tmp_path / "stacked", arch)
    line = re.search('python -c "(.*)", copy', str(refused.value))
    assert line is not None
    exec(line[1].replace("NEW", str(tmp_path / "new")), {})
    check_tensors(tmp_path / "new", read_architecture(tmp_path / "new"))
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "new"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_noise_in_mixtrals_router_is_refused(tmp_path: Path) -> None:
    transformers.MixtralConfig().save_pretrained(tmp_path / "model")
    assert_refused(tmp_path / "model", tmp_path, {"router_jitter_noise": 0.1}, "router_jitter_noise 0.1")
