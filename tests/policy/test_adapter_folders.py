"""Adapter folders in and out, with the real `peft` at the other end, and what is refused of them.

Gradients and layouts are in `test_lora.py`, whole runs in `tests/e2e/test_adapters.py`; this is one process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rs_aligner.config import PairModelConfig, PolicyModelBase
from rs_aligner.config.base import check
from rs_aligner.model.adapter_folder import gather_adapters
from rs_aligner.model.folder import fingerprint
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.model_folder import problem_with
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reward_model import MegatronRewardModel
from rs_aligner.policy.sampler import load_model
from rs_aligner.policy.trainable import Optimization
from rs_aligner.policy.weights import merge_folder
from rs_aligner.rollout import PreferencePair
from tests.policy.layout_program import rows
from tests.policy.objective_cases import NoText
from tests.tiny import FAMILIES, MIXTURES, save_tiny, save_tiny_adapter, save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
EVERYWHERE = {
    "target_modules": [
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        *("c_attn", "c_fc", "c_proj"),
    ]
}
ATTENTION = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5]]
LORA = {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 2}}


def config(kind: type = PolicyModelBase, **peft_settings: Any) -> Any:
    tree = {
        "peft": {**LORA, **peft_settings},
        "global_batch_size": 8,
        "data": {"data_prefix": {"train": "x"}},
    }
    return kind.model_validate(tree)


def new_policy(folder: Path, rt: Runtime, tokenizer: Any = None, **peft_settings: Any) -> MegatronPolicy:
    return MegatronPolicy(
        folder,
        config(**peft_settings),
        rt,
        tokenizer or NoText(),
        optimization=Optimization(lambda step: 1e-2),
        keep_start=True,
    )


def gathered(policy: MegatronPolicy) -> dict[str, torch.Tensor]:
    assert policy.adapters is not None
    return gather_adapters(policy.adapters)


def logits_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Of a model of `transformers` or Megatron, a row at a time."""
    found = []
    for row in TOKENS:
        tokens = torch.tensor([row])
        with torch.no_grad():
            if hasattr(model, "decoder"):
                found.append(model(tokens, torch.arange(len(row))[None], None)[0])
            else:
                found.append(model(tokens).logits[0])
    return found


def with_peft(base: Path, adapter: Path) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(model, str(adapter))


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def targets_of(family: str) -> dict[str, list[str]]:
    """What `peft` adapts: all of it, but a mixture's experts."""
    return ATTENTION if family in MIXTURES else EVERYWHERE


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), *((family, {**targets_of(family), "use_rslora": True}) for family in FAMILIES)],
    ids=["queries and values", *FAMILIES],
)
def test_a_model_with_an_adapter_of_peft_has_the_logits_that_peft_gives_it(
    rt: Runtime, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    base = save_tiny(family, tmp_path / "base")
    adapter = save_tiny_adapter(tmp_path / "adapter", base, **settings)
    loaded = load_model(base, rt, "fp32")
    plain = logits_of(loaded.model)
    merge_folder(loaded.model, loaded.arch, rt, adapter)
    expected = logits_of(with_peft(base, adapter))
    assert_same(logits_of(loaded.model), expected)
    assert (plain[0] - expected[0]).abs().max() > 1e-2 * expected[0].abs().max()
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_an_adapter_is_trained_further_and_goes_back_to_peft(rt: Runtime, tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", layers=2)
    adapter = save_tiny_adapter(tmp_path / "adapter", base, use_rslora=True)
    (base / "tokenizer.json").write_text("{}")
    policy = new_policy(
        base, rt, restore_from_path=str(adapter), export="adapter", lora_tuning={"adapter_dim": None}
    )
    policy.export(tmp_path / "untouched")
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "untouched" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    reference = policy.reference_log_probs(rows(3))
    policy.train(rows())
    policy.export(tmp_path / "final")
    assert_same(logits_of(policy.model), logits_of(with_peft(base, tmp_path / "final")))
    assert policy.reference_log_probs(rows(3)) == reference, "that of base and adapter as they began"
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    made = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert (made["r"], made["lora_alpha"], made["use_rslora"]) == (2, 6, True)
    assert made["base_model_name_or_path"] == str(base)


def test_on_a_gpu_the_weights_stay_where_they_are_and_the_base_comes_back_from_the_host(
    rt: Runtime, adapter_source: Path
) -> None:
    """The way of a GPU, walked on a CPU: in place, with a copy that is made once."""
    adapters = new_policy(
        adapter_source / "base", rt, restore_from_path=str(adapter_source / "adapter"), lora_tuning={}
    ).adapters
    assert adapters is not None
    weights = [adapters.model.decoder.layers[n].self_attention.linear_qkv.weight for n in (0, 1)]
    before = [weight.detach().clone() for weight in weights]
    adapters.merge()
    merged = [weight.detach().clone() for weight in weights]
    adapters.restore()
    places = [weight.data_ptr() for weight in weights]
    adapters.runtime = replace(rt, device=torch.device("cuda"))
    for _ in range(3):
        adapters.merge()
        assert all(torch.equal(one, other) for one, other in zip(weights, merged, strict=True))
        adapters.restore()
        assert all(torch.equal(one, other) for one, other in zip(weights, before, strict=True))
    assert [weight.data_ptr() for weight in weights] == places
    assert not torch.equal(before[0], merged[0])


def test_a_merged_export_and_a_checkpoint_are_the_model_with_its_adapters(
    rt: Runtime, tmp_path: Path
) -> None:
    base = save_tiny("llama", tmp_path / "base", layers=2)
    policy = new_policy(base, rt)
    policy.train(rows())
    policy.save(tmp_path / "step_1", {})
    policy.export(tmp_path / "final")
    expected = logits_of(policy.model)
    assert not (tmp_path / "final" / "adapter_config.json").exists()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32)
    assert_same(logits_of(merged), expected)
    assert problem_with(str(tmp_path / "step_1")) is None
    assert_same(logits_of(load_model(tmp_path / "step_1", rt, "fp32").model), expected)
    further = new_policy(tmp_path / "step_1", rt)  # new adapters upon the old ones, which are in the weights
    assert_same(logits_of(further.model), expected)
    further.save(tmp_path / "step_2", {})
    assert_same(logits_of(load_model(tmp_path / "step_2", rt, "fp32").model), expected)
    base.rename(tmp_path / "elsewhere")
    found = problem_with(str(tmp_path / "step_1"))
    assert found is not None
    assert f"without the model that they belong to, and {base} is not there" in found


def test_a_reward_models_adapter_has_its_head_and_gives_peft_the_same_rewards(
    rt: Runtime, tmp_path: Path
) -> None:
    base = save_tiny_with_tokenizer(tmp_path / "base")
    model = MegatronRewardModel(
        base,
        config(PairModelConfig, export="adapter"),
        rt,
        Tokenizer(base),
        optimization=Optimization(lambda step: 1e-2),
    )
    pairs = [PreferencePair((1, 7, 9), (1, 7, 8, 4)), PreferencePair((5, 6), (5, 4))]
    model.train(pairs)
    model.save(tmp_path / "step_1", {})
    model.export(tmp_path / "final")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    found = peft.PeftModel.from_pretrained(plain, str(tmp_path / "final"))
    found.config.pad_token_id = None
    sequences = [pair.chosen for pair in pairs]
    with torch.no_grad():
        expected = [float(found(torch.tensor([sequence])).logits) for sequence in sequences]
    assert model.score(sequences) == pytest.approx(expected, abs=1e-5)
    again = MegatronRewardModel(
        tmp_path / "step_1",
        config(PairModelConfig),
        rt,
        Tokenizer(base),
        optimization=Optimization(lambda step: 1e-2),
    )
    assert again.score(sequences) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_in_pytorchs_own_format_is_the_same_adapter(
    rt: Runtime, tmp_path: Path, adapter_source: Path
) -> None:
    adapter = Path(shutil.copytree(adapter_source / "adapter", tmp_path / "adapter"))
    told = {"restore_from_path": str(adapter), "lora_tuning": {}}
    expected = gathered(new_policy(adapter_source / "base", rt, **told))
    before = fingerprint(adapter)
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    found = gathered(new_policy(adapter_source / "base", rt, **told))
    assert fingerprint(adapter) != before
    assert found
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], one) for name, one in expected.items())


def in_config(**values: Any) -> Callable[[Path], None]:
    """Changes `adapter_config.json`."""

    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def without_a_layer(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: one for name, one in load_file(file).items() if "layers.1" not in name}, file)


def with_an_embedding(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    save_file({**load_file(file), name: torch.zeros(2, 96)}, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_config(use_dora=True), "use_dora=True"),
        (in_config(peft_type="IA3"), "peft_type 'IA3'"),
        (in_config(init_lora_weights="pissa"), "init_lora_weights='pissa', which changes the base model"),
        (in_config(bias="all"), "bias='all'"),
        (in_config(rank_pattern={"q_proj": 4}), "rank_pattern"),
        (in_config(modules_to_save=["embed_tokens"]), "modules_to_save"),
        (in_config(r=0), "r=0"),
        (in_config(r=3), "it is an adapter of another model"),
        (without_a_layer, "adapters of some layers only are not supported"),
        (with_an_embedding, "embed_tokens.lora_embedding_A belongs to no matrix"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "is no adapter folder of peft"),
    ],
    ids=lambda one: one.split()[0].partition("=")[0] if isinstance(one, str) else "",
)
def test_an_adapter_that_is_more_or_belongs_elsewhere_is_refused_by_its_name(
    rt: Runtime, tmp_path: Path, adapter_source: Path, change: Callable[[Path], None], words: str
) -> None:
    adapter = Path(shutil.copytree(adapter_source / "adapter", tmp_path / "adapter"))
    change(adapter)
    told = [*check(config(restore_from_path=str(adapter), lora_tuning={}).peft, "model.peft")]
    if not told:  # what only the tensors tell
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors") as caught:
            new_policy(adapter_source / "base", rt, restore_from_path=str(adapter), lora_tuning={})
        told = [str(caught.value)]
    assert words in " ".join(told)


@pytest.fixture(scope="module")
def adapter_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an adapter."""
    folder = tmp_path_factory.mktemp("source")
    save_tiny("llama", folder / "base", layers=2)
    save_tiny_adapter(folder / "adapter", folder / "base")
    return folder


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lora_tuning": {"adapter_dropout": 0.1}}, "adapter_dropout is 0.1: should be 0"),
        ({"lora_tuning": {"column_init_method": "zero"}}, 'row_init_method is "zero": should not be zero'),
        ({"peft_scheme": "none", "export": "adapter"}, 'export is "adapter": needs model.peft.peft_scheme'),
        (
            {"lora_tuning": {"adapter_dim": 3}, "restore_from_path": "@"},
            "adapter_dim is 3: should be null or 2",
        ),
        ({"lora_tuning": {"alpha": 2}, "restore_from_path": "@"}, "alpha is 2.0: should be null or 6.0"),
        ({"peft_scheme": "none", "restore_from_path": "@"}, "needs model.peft.peft_scheme=lora"),
    ],
    ids=["dropout", "zeros", "export", "rank", "alpha", "no scheme"],
)
def test_settings_that_cannot_work_are_told_by_their_keys(
    adapter_source: Path, settings: dict[str, Any], line: str
) -> None:
    settings = {
        key: str(adapter_source / "adapter") if value == "@" else value for key, value in settings.items()
    }
    assert any(line in told for told in check(config(**settings).peft, "model.peft"))


def test_targets_that_the_model_does_not_have_are_told_before_it_is_loaded(
    rt: Runtime, adapter_source: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"target_modules has 'c_attn': a llama model has attention_qkv, .*q_proj"
    ):
        new_policy(adapter_source / "base", rt, lora_tuning={"target_modules": ["c_attn"]})
    adapter = str(adapter_source / "adapter")
    with pytest.raises(
        ValueError, match=r"stands for self_attn.o_proj, and the adapter in .* has self_attn.q_pr"
    ):
        new_policy(
            adapter_source / "base",
            rt,
            restore_from_path=adapter,
            lora_tuning={"target_modules": "attention_dense"},
        )


def test_a_checkpoint_of_other_adapters_or_of_none_is_refused_by_the_key(
    rt: Runtime, adapter_source: Path, tmp_path: Path
) -> None:
    base = adapter_source / "base"
    for name, settings in (("lora", {}), ("full", {"peft_scheme": "none"})):
        new_policy(base, rt, **settings).save(tmp_path / name / "step_1", {})
    for saved, settings, told in (
        (
            "lora",
            {"lora_tuning": {"adapter_dim": 4}},
            "model.peft.lora_tuning.adapter_dim=2, and this run has 4",
        ),
        (
            "lora",
            {"lora_tuning": {"adapter_dim": 2, "alpha": 8}},
            "lora_tuning.alpha=2.0, and this run has 8.0",
        ),
        ("lora", {"lora_tuning": {"adapter_dim": 2, "target_modules": "mlp"}}, "lora_tuning.target_modules="),
        ("lora", {"peft_scheme": "none"}, "model.peft.peft_scheme=lora, and this run has none"),
        ("full", {}, "model.peft.peft_scheme=none, and this run has lora"),
    ):
        policy = new_policy(base, rt, **settings)
        with pytest.raises(ValueError, match="was saved with") as caught:
            policy.load(tmp_path / saved / "step_1")
        assert told in str(caught.value)


def test_the_rate_is_that_of_adapters_unless_one_is_given() -> None:
    def rate(**tree: Any) -> float:
        found: float = PolicyModelBase.model_validate(
            {"data": {"data_prefix": {"train": "x"}}, **tree}
        ).optim.lr
        return found

    assert rate() == rate(optim={"lr": None}) == 1e-5
    assert rate(peft=LORA) == rate(peft=LORA, optim={"lr": None}) == 1e-4
    assert rate(peft=LORA, optim={"lr": 3e-4}) == 3e-4
