"""A reward model of every family: its scores are those of `transformers`, from wherever it was loaded.

Gradients and layouts are in `test_layouts.py`; this is one process.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from rs_aligner.config import PairModelConfig, PolicyModelBase
from rs_aligner.model import huggingface
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tensors import num_parameters
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy import checkpoint
from rs_aligner.policy.batches import Split
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reward_model import MegatronRewardModel, config_changes, load_reward_model
from rs_aligner.policy.scoring import WIDTH, SequenceScorer, batches_of
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import PreferencePair, TrainingRow
from tests.policy.layout_program import new_trainer
from tests.tiny import FAMILIES, save_tiny, save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)
CONFIG = {"data": {"data_prefix": {"train": []}}, "micro_batch_size": 2, "global_batch_size": 4}


def sequences() -> list[list[int]]:
    rng = random.Random(2)
    return [[rng.randrange(96) for _ in range(length)] for length in (1, 7, 64, 65, 100, 3)]


def by_transformers(folder: Path) -> list[float]:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return [float(model(torch.tensor([tokens])).logits) for tokens in sequences()]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "granite"])
def test_transformers_gives_the_same_rewards_in_every_family(
    rt: Runtime, tmp_path: Path, family: str
) -> None:
    start = save_tiny(family, tmp_path / "policy")
    model, arch = load_reward_model(start, rt, seed=5)
    rewards = SequenceScorer(model, rt, 2)(sequences())
    # All that is read of it.
    changes = config_changes(arch, SimpleNamespace(pad_id=None))  # type: ignore[arg-type]  # a stand-in
    huggingface.save_weights(tmp_path / "reward", model, arch, rt, start, changes)
    assert rewards == pytest.approx(by_transformers(tmp_path / "reward"), rel=1e-3, abs=1e-4)
    assert len(set(rewards)) == len(rewards)

    found = read_architecture(tmp_path / "reward")
    assert found == arch
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert num_parameters(found) == sum(parameter.numel() for parameter in saved.parameters())
    again, _ = load_reward_model(tmp_path / "reward", rt, seed=6)  # its own head, not a new one
    assert SequenceScorer(again, rt, 2)(sequences()) == rewards


def test_a_family_of_which_transformers_has_no_classifier_is_refused(rt: Runtime, tmp_path: Path) -> None:
    start = save_tiny("granite", tmp_path / "policy", layers=1)
    with pytest.raises(ValueError, match=r"granite model cannot .* no GraniteForSequenceClassification"):
        load_reward_model(start, rt, seed=5)
    assert not hasattr(transformers, "GraniteForSequenceClassification")


@pytest.mark.parametrize("family", ["llama", "llama3"])
def test_a_policys_checkpoint_can_be_started_from(rt: Runtime, tmp_path: Path, family: str) -> None:
    """The trunk is the checkpoint's, also where that has an output layer (llama3); the head is new."""
    start, saved = save_tiny(family, tmp_path / "policy"), tmp_path / "step_000001"
    policy = new_trainer(start, rt, distributed=True)
    policy.step([TrainingRow((1, 2), (3, 4))], split=Split(1), learning_rate=1e-2)
    checkpoint.save(saved, policy, rt, {}, start)
    model, _ = load_reward_model(saved, rt, seed=5)
    trained = dict(policy.ddp.module.named_parameters())
    for name, parameter in model.named_parameters():
        if name != "output_layer.weight":
            assert torch.equal(parameter, trained[name]), name
    fresh, _ = load_reward_model(start, rt, seed=5)
    assert torch.equal(model.output_layer.weight, fresh.output_layer.weight)
    assert SequenceScorer(model, rt, 2)(sequences()) != SequenceScorer(fresh, rt, 2)(sequences())


def test_a_reward_does_not_depend_on_what_is_scored_beside_it(rt: Runtime, tmp_path: Path) -> None:
    model, _ = load_reward_model(save_tiny("llama", tmp_path), rt, seed=5)
    score = SequenceScorer(model, rt, 4)
    together = score(sequences())
    assert [score([one])[0] for one in sequences()] == together
    assert score(sequences()[::-1] * 3) == together[::-1] * 3
    assert score([]) == []


def test_sequences_go_with_those_of_their_width() -> None:
    rows = [[0] * length for length in (1, WIDTH + 1, WIDTH, 2, 3)]
    assert batches_of(rows, 3) == [(WIDTH, [0, 2, 3]), (WIDTH, [4]), (2 * WIDTH, [1])]


@pytest.fixture
def reward_model(rt: Runtime, tmp_path: Path) -> MegatronRewardModel:
    folder = save_tiny_with_tokenizer(tmp_path / "policy")
    config = PairModelConfig.model_validate({**CONFIG, "data": {**CONFIG["data"], "add_bos": True}})
    return MegatronRewardModel(
        folder, config, rt, Tokenizer(folder), optimization=Optimization(lambda step: 1e-2)
    )


def test_training_lets_it_order_the_pairs_right(reward_model: MegatronRewardModel) -> None:
    rng = random.Random(1)
    pairs = [
        PreferencePair((*prompt, 100 + i, 1), (*prompt, 50 + i, 1))
        for i in range(8)
        for prompt in [[rng.randrange(2, 258) for _ in range(5 + i)]]
    ]
    before = reward_model.evaluate(pairs)
    stats = [one for _ in range(15) for one in reward_model.train(pairs)]
    after = reward_model.evaluate(pairs)
    assert len(stats) == reward_model.optimizer_steps == 30
    assert after["loss"] < before["loss"]
    assert (stats[-1].accuracy, after["accuracy"]) == (1.0, 1.0)
    rewards = reward_model.score([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    margins = torch.tensor(rewards[:8]) - torch.tensor(rewards[8:])
    assert after["loss"] == pytest.approx(float(torch.log1p(torch.exp(-margins)).mean()), rel=1e-4)
    assert after["reward_std"] == pytest.approx(float(torch.tensor(rewards).std(correction=0)), rel=1e-4)


def test_an_exported_reward_model_brings_what_its_judge_must_know(
    reward_model: MegatronRewardModel, rt: Runtime, tmp_path: Path
) -> None:
    reward_model.train([PreferencePair((5, 6), (5, 7))])
    reward_model.export(tmp_path / "final")
    reward_model.save(tmp_path / "step_000001", {"step": 1})
    for part in ("final", "step_000001/huggingface"):
        config: dict[str, Any] = json.loads((tmp_path / part / "config.json").read_text())
        assert config["architectures"] == ["LlamaForSequenceClassification"]
        assert config["rs_aligner"] == {"add_bos": True}
        assert config["pad_token_id"] == 0  # there is no padding token, so the begin token
        Tokenizer(tmp_path / part)
    rewards = reward_model.score(sequences())
    for start in ("final", "step_000001"):
        model, _ = load_reward_model(tmp_path / start, rt, seed=9)
        assert SequenceScorer(model, rt, 4)(sequences()) == rewards


def test_a_reward_model_is_no_policy(reward_model: MegatronRewardModel, rt: Runtime, tmp_path: Path) -> None:
    reward_model.export(tmp_path / "final")
    config = PolicyModelBase.model_validate(CONFIG)
    with pytest.raises(ValueError, match="final is a reward model: it has a value head and cannot generate"):
        MegatronPolicy(
            tmp_path / "final",
            config,
            rt,
            Tokenizer(tmp_path / "final"),
            optimization=Optimization(lambda step: 0.0),
        )


def test_a_padding_token_that_ends_texts_is_not_used_for_padding(tmp_path: Path) -> None:
    folder = save_tiny_with_tokenizer(tmp_path / "model")
    for pad, bos, expected in (
        ("</s>", "<s>", 0),
        ("</s>", "</s>", None),
        ("a", "</s>", 66),
        (None, "<s>", 0),
    ):
        saved = transformers.AutoTokenizer.from_pretrained(folder)
        saved.pad_token, saved.bos_token = pad, bos
        saved.save_pretrained(tmp_path / "other")
        found = Tokenizer(tmp_path / "other")
        assert found.pad_id == expected, (pad, bos)


def test_a_reward_model_of_a_bfloat16_folder_is_written_in_bfloat16(rt: Runtime, tmp_path: Path) -> None:
    start = save_tiny("qwen2", tmp_path / "policy")
    transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16).save_pretrained(start)
    model, arch = load_reward_model(start, rt)
    # All that is read of it.
    changes = config_changes(arch, SimpleNamespace(pad_id=None))  # type: ignore[arg-type]  # a stand-in
    huggingface.save_weights(tmp_path / "reward", model, arch, rt, start, changes)
    written = load_file(tmp_path / "reward" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "reward" / "config.json").read_text())["dtype"] == "bfloat16"
