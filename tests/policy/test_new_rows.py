"""Tokens that a model's embedding lacks get rows, as transformers makes them, and what was there stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from rs_aligner.commands.machine import fit_of_rows
from rs_aligner.config import PairModelConfig, PolicyModelBase, TrainSFTConfig, load_config
from rs_aligner.generation.sampling import Controls
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.folder import read_model_folder
from rs_aligner.model.layouts import ROWS
from rs_aligner.model.new_rows import enlarged, read_rows
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reward_model import MegatronRewardModel
from rs_aligner.policy.sampler import load_sampler
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import Prompt, TrainingRow
from tests.drawing import request_of
from tests.tiny import save_more_tokens, save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)
OLD, TOKENS, NEW = 258, 261, 320
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CONFIG = {"data": {"data_prefix": {"train": []}}, "micro_batch_size": 2, "global_batch_size": 4}
LEARN = Optimization(lambda step: 1e-2, "fp32")


@pytest.fixture(params=[True, False], ids=["tied", "with a head"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = save_tiny_with_tokenizer(tmp_path / "start")
    if not request.param:
        config = transformers.AutoConfig.from_pretrained(folder, tie_word_embeddings=False)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return save_more_tokens(folder, TOKENS - OLD)


def new_policy(folder: Path, rt: Runtime) -> MegatronPolicy:
    config = PolicyModelBase.model_validate(CONFIG)
    return MegatronPolicy(folder, config, rt, Tokenizer(folder), optimization=LEARN)


def by_transformers(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits
    return found


def test_rows_are_those_of_transformers_and_logits_of_old_tokens_stay(
    folder: Path, rt: Runtime, tmp_path: Path
) -> None:
    before = load_file(folder / "model.safetensors")
    policy = new_policy(folder, rt)
    policy.export(tmp_path / "final")
    after = load_file(tmp_path / "final" / "model.safetensors")
    assert set(after) == set(before)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.resize_token_embeddings(TOKENS, pad_to_multiple_of=64)
    tables = [name for name in (EMBEDDING, HEAD) if name in before]
    for name in tables:
        assert after[name].shape == (NEW, 32)
        assert torch.equal(after[name][:OLD], before[name])
        mean = before[name].double().mean(0).float()
        assert torch.equal(after[name][OLD:], mean.expand(NEW - OLD, -1))
        assert (after[name] - theirs.state_dict()[name]).abs().max() < 1e-4  # they add a little noise
    assert all(torch.equal(after[name], one) for name, one in before.items() if name not in tables)

    tokens = torch.randint(OLD, (2, 40), generator=torch.Generator().manual_seed(3))
    logits = by_transformers(tmp_path / "final", tokens)
    assert torch.allclose(logits[..., :OLD], by_transformers(folder, tokens), atol=1e-6)
    with torch.no_grad():
        ours = policy.model.eval()(tokens, torch.arange(40).expand_as(tokens), None)
    assert (ours - logits).abs().max() < 1e-4


def test_new_tokens_are_learnt_saved_and_gone_on_with(folder: Path, rt: Runtime, tmp_path: Path) -> None:
    policy = new_policy(folder, rt)
    new = range(OLD, TOKENS)
    rows = [TrainingRow((5, 6), (token, token - 100)) for token in new]
    first = policy.step(rows, 1e-2)
    for _ in range(5):
        last = policy.step(rows, 1e-2)
    assert last.loss < first.loss
    policy.save(tmp_path / "step_000001", {})
    policy.export(tmp_path / "final")
    for made in (tmp_path / "final", tmp_path / "step_000001" / "huggingface"):
        assert json.loads((made / "config.json").read_text())["vocab_size"] == NEW
    learnt = load_file(tmp_path / "final" / "model.safetensors")[EMBEDDING][OLD:TOKENS]
    assert not torch.equal(learnt[0], learnt[1])

    again = new_policy(folder, rt)  # as a run that goes on: its start first, then its checkpoint
    again.load(tmp_path / "step_000001")
    for start in (tmp_path / "final", tmp_path / "step_000001"):  # as another run, without the key
        _, arch = read_model_folder(str(start), "the.key")
        assert arch.vocab_size == NEW
        other = MegatronPolicy(
            start,
            PolicyModelBase.model_validate(CONFIG),
            rt,
            Tokenizer(folder),
            optimization=LEARN,
        )
        for one in (again, other):
            found = dict(one.model.named_parameters())
            assert all(torch.equal(found[name], each) for name, each in policy.model.named_parameters())


def test_rows_without_a_token_are_never_sampled(folder: Path, rt: Runtime) -> None:
    sampler = load_sampler(folder, rt, Tokenizer(folder), seed=1)
    prompts = [Prompt(f"p{i}", "", (5 + i,), {}, i) for i in range(4)]
    asked = request_of(prompts, 16, Controls(max_length=16, temperature=50.0))
    drawn = {token for rollout in sampler.generate(asked) for token in rollout.token_ids}
    assert drawn & set(range(OLD, TOKENS))
    assert max(drawn) < TOKENS


def test_a_reward_model_has_the_rows_too(folder: Path, rt: Runtime, tmp_path: Path) -> None:
    config = PairModelConfig.model_validate(CONFIG)
    model = MegatronRewardModel(folder, config, rt, Tokenizer(folder), optimization=LEARN)
    model.export(tmp_path / "reward")
    scores = model.score([[5, 6, OLD], [7, TOKENS - 1]])
    _, arch = read_model_folder(str(tmp_path / "reward"), "the.key", use="score")
    assert arch.vocab_size == NEW
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    with torch.no_grad():
        expected = [float(loaded(torch.tensor([one])).logits) for one in ([5, 6, OLD], [7, TOKENS - 1])]
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 2, 4, 16, 64])
def test_ranks_have_parts_of_the_same_table(parts: int, dtype: torch.dtype) -> None:
    """With 64 ranks some have new rows alone."""
    table = torch.randn(OLD, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    places = [ROWS.places((NEW, 8), rank, parts)[0] for rank in range(parts)]
    found = torch.cat([read_rows(table, OLD, place) for place in places])
    assert found.dtype == dtype
    assert torch.equal(found[:OLD], table)
    assert torch.equal(found[OLD:], table.double().mean(0).to(dtype).expand(NEW - OLD, -1))


def test_a_vocabulary_with_room_is_left_alone(tmp_path: Path) -> None:
    arch = read_architecture(save_tiny_with_tokenizer(tmp_path))
    assert enlarged(arch, OLD) == arch
    assert [enlarged(arch, number).vocab_size for number in (259, 320, 321)] == [320, 320, 384]


def settings(folder: Path, **model: Any) -> TrainSFTConfig:
    (folder / "rows.jsonl").touch()
    train = {"train": str(folder / "rows.jsonl")}
    tree = {
        "pretrained_checkpoint": {"restore_from_path": str(folder), "resize_token_embeddings": True},
        "exp_manager": {"explicit_log_dir": "run"},
        "model": {"global_batch_size": 4, "data": {"data_prefix": train}, **model},
    }
    return load_config(tree, TrainSFTConfig)


def test_the_plan_of_memory_counts_them(tmp_path: Path) -> None:
    folder, rows = save_tiny_with_tokenizer(tmp_path / "start"), [TrainingRow((5, 6), (7, 8))]
    before = fit_of_rows(settings(folder), rows).arch
    assert before.vocab_size == OLD
    save_more_tokens(folder, TOKENS - OLD)
    assert fit_of_rows(settings(folder), rows).arch == replace(before, vocab_size=NEW)


def test_adapters_alone_would_leave_new_tokens_alike_and_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_with_tokenizer(tmp_path / "start")
    with pytest.raises(ValueError, match=r"model\.peft\.peft_scheme=lora") as error:
        settings(folder, peft={"peft_scheme": "lora"})
    assert "pretrained_checkpoint.resize_token_embeddings is true: should be false" in str(error.value)
