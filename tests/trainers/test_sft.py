"""Supervised training: when it stops, what it trains on, and that it continues exactly.

The loop is run with plain fakes, whose answers get better with each step; the script at the end for real.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rs_aligner.config import RemoteRMConfig, TrainSFTConfig
from rs_aligner.record.ledger_row import Judged
from rs_aligner.record.run import Run
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.reward.judges import JudgeFunction
from rs_aligner.reward.judges.functions import FunctionJudge
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure, TrainingRow
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.round import Share
from rs_aligner.trainers.sft import SFTTrainer
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
ROWS = [TrainingRow((i,), (100 + i,)) for i in range(10)]
HELD_OUT = [Prompt(f"p{i}", f"text {i}", (50 + i,), {"number": i}) for i in range(4)]


@dataclass(frozen=True)
class FakeStats:
    loss: float
    grad_norm: float = 1.0
    learning_rate: float = 0.1
    figures: dict[str, float] = field(default_factory=dict)
    skipped: Sequence[Any] = ()


class FakePolicy:
    """Answers every prompt with the number of steps made so far.

    With `other_replica` it is one of two, and these are the scores of the odd prompts, which are the other's.
    """

    weights_seconds = 0.0

    def __init__(self, other_replica: list[Score | ScoreFailure] | None = None) -> None:
        self.version = 0
        self.trained: list[list[TrainingRow]] = []
        self.asked: list[list[Prompt]] = []
        self.other_replica = other_replica

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        assert request.sampling.use_greedy
        self.asked.append(list(request.prompts))
        share = 1 if self.other_replica is None else 2
        for group in reversed(range(0, len(request.prompts), share)):  # rollouts end in any order
            yield Rollout(group, 0, (7,), str(self.version), "stop")

    def train(self, rows: Sequence[TrainingRow]) -> list[FakeStats]:
        self.trained.append(list(rows))
        return [FakeStats(loss=float(len(rows)))]

    def gather(self, item: Any) -> list[Any]:
        if self.other_replica is None:
            return [item]
        rollouts = [Rollout(group, 0, (7,), "", "stop") for group in (1, 3)]
        others = [Judged(*pair, None) for pair in zip(rollouts, self.other_replica, strict=True)]
        return [item, Share(others)]

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        return values

    def checkpoint_bytes(self) -> int:
        return 0

    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        (folder / "counters.json").write_text(json.dumps([self.version, counters]))

    def load(self, folder: Path) -> dict[str, Any]:
        self.version, counters = json.loads((folder / "counters.json").read_text())
        return dict(counters)

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "version").write_text(str(self.version))


def tenth_of_steps(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
    """A judge that finds each step a tenth better, and odd prompts a tenth better than even ones."""
    assert prompts == [f"text {row['number']}" for row in metadata]
    return [int(text) / 10 + row["number"] % 2 / 10 for text, row in zip(responses, metadata, strict=True)]


def fit(
    folder: Path, policy: FakePolicy, judge: JudgeFunction | None = tenth_of_steps, **loop: Any
) -> list[dict[str, Any]]:
    """Train in `folder`; the rows of its metrics."""
    tree = {
        "trainer": {"sft": {"val_check_interval": 2, **loop}},
        "judge": None if judge is None else {"name": "exact_answer"},
        "exp_manager": {"explicit_log_dir": str(folder)},
        "pretrained_checkpoint": {"restore_from_path": "unused"},
        "model": {"global_batch_size": 3, "data": {"data_prefix": {"train": "unused"}}},
    }
    config = TrainSFTConfig.model_validate(tree)
    with contextlib.ExitStack() as stack:
        client = None
        if judge is not None:
            client = RemoteGPTRMClient(RemoteRMConfig(), FunctionJudge(judge, "fingerprint"))
            stack.enter_context(client)
        run = stack.enter_context(Run(config.exp_manager, is_first=True))
        SFTTrainer(config, policy, client, rows=ROWS, validation=HELD_OUT if judge else [], run=run).fit()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_stops_at_the_first_validation_that_is_good_enough(tmp_path):
    policy = FakePolicy()
    metrics = fit(tmp_path, policy, max_epochs=9, stop_at_validation=0.30)
    validations = {row["step"]: row["validation/reward"] for row in metrics if "validation/reward" in row}
    assert validations == pytest.approx({0: 0.05, 2: 0.25, 4: 0.45})
    assert [row["step"] for row in metrics] == [0, 1, 2, 3, 4]
    assert [len(rows) for rows in policy.trained] == [3, 3, 2, 2]  # not 3, 3, 3 and the one that is left
    assert metrics[-1]["consumed_prompts"] == 10
    assert (tmp_path / "final" / "version").read_text() == "4"


def test_training_that_is_never_good_enough_ends_with_its_epochs_and_says_so(tmp_path, caplog):
    policy = FakePolicy()
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        metrics = fit(tmp_path, policy, max_epochs=2, val_check_interval=5, stop_at_validation=2.0)
    assert "below trainer.sft.stop_at_validation=2.0" in caplog.text
    assert [row["step"] for row in metrics if "validation/reward" in row] == [0, 5, 8]
    epochs = [[row for batch in policy.trained[half] for row in batch] for half in (slice(4), slice(4, 8))]
    assert [sorted(row.prompt[0] for row in epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]


def test_max_steps_cuts_the_epochs_short(tmp_path):
    policy = FakePolicy()
    assert [row["step"] for row in fit(tmp_path, policy, max_steps=3)] == [0, 1, 2, 3]
    assert len(policy.trained) == 3


def test_without_a_judge_there_is_no_validation(tmp_path):
    policy = FakePolicy()
    metrics = fit(tmp_path, policy, judge=None)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert not any("validation/reward" in row for row in metrics)
    assert policy.asked == []


def test_a_run_that_is_continued_trains_on_what_an_uninterrupted_one_does(tmp_path):
    whole, first, second = FakePolicy(), FakePolicy(), FakePolicy()
    expected = fit(tmp_path / "whole", whole, max_epochs=2)
    fit(tmp_path / "parts", first, max_epochs=2, max_steps=3)
    metrics = fit(tmp_path / "parts", second, max_epochs=2)
    assert first.trained + second.trained == whole.trained
    assert [row["step"] for row in metrics] == [row["step"] for row in expected]
    assert second.version == whole.version == 8


def test_a_run_that_was_good_enough_is_not_trained_further_until_more_is_wanted(tmp_path):
    fit(tmp_path, FakePolicy(), max_epochs=9, stop_at_validation=0.30)
    again = FakePolicy()
    assert len(fit(tmp_path, again, max_epochs=9, stop_at_validation=0.30)) == 5
    assert again.trained == []
    assert again.asked == []
    assert fit(tmp_path, again, max_epochs=9, stop_at_validation=0.60)[-1]["step"] == 6


def test_the_score_is_that_of_all_replicas(tmp_path):
    policy = FakePolicy(other_replica=[Score(0.9), Score(0.7)])
    # This replica answers prompts 0 and 2, which score 0 before the first step.
    assert fit(tmp_path, policy, max_steps=1)[0]["validation/reward"] == pytest.approx(1.6 / 4)


def test_an_answer_without_a_score_does_not_count_on_whichever_replica(tmp_path, caplog):
    policy = FakePolicy(other_replica=[Score(0.9), ScoreFailure("it was late")])
    assert fit(tmp_path, policy, max_steps=1)[0]["validation/reward"] == pytest.approx(0.9 / 3)
    assert "1 of 4 answers have no score: 1 x it was late" in caplog.text


def test_an_answer_without_a_score_does_not_count(tmp_path, caplog):
    def half(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [math.nan if row["number"] < 2 else 0.5 for row in metadata]

    metrics = fit(tmp_path, FakePolicy(), half, max_steps=1)
    assert metrics[0] == {"step": 0, "validation/reward": 0.5, "validation/reward_error": 0.0}
    reason = "2 of 4 answers have no score: 2 x the judge's reward is nan, not a finite number"
    assert reason in caplog.text


def test_a_judge_that_scores_nothing_ends_the_run(tmp_path):
    def silent(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [math.nan] * len(prompts)

    with pytest.raises(JudgeFailed, match="none of 4 answers: 4 x the judge's reward is nan"):
        fit(tmp_path, FakePolicy(), silent)


def test_a_judge_that_fails_in_a_validation_costs_no_step(tmp_path):
    """The next save would have been behind step 4."""
    whole, first, second = FakePolicy(), FakePolicy(), FakePolicy()
    expected = fit(tmp_path / "whole", whole, max_epochs=2, save_interval=4)

    def ill(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        if responses[0] == "2":
            raise OSError("the judge's disk is full")
        return tenth_of_steps(prompts, responses, metadata)

    with pytest.raises(JudgeFailed, match="the judge's disk is full") as error:
        fit(tmp_path / "parts", first, ill, max_epochs=2, save_interval=4)
    last = tmp_path / "parts" / "checkpoints" / "step_000002"
    assert error.value.__notes__ == [f"the run goes on behind step 2 ({last})"]
    metrics = fit(tmp_path / "parts", second, max_epochs=2, save_interval=4)
    assert [len(policy.trained) for policy in (first, second)] == [2, 6]
    assert first.trained + second.trained == whole.trained
    without_times = [{key: row[key] for key in row if "time" not in key} for row in (*metrics, *expected)]
    assert without_times[: len(expected)] == without_times[len(expected) :]


def test_a_judge_that_raises_is_a_failure_with_its_reason_and_no_number(tmp_path):
    def broken(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        raise KeyError("gold")

    with pytest.raises(JudgeFailed, match="4 x the judge raised KeyError: 'gold'"):
        fit(tmp_path, FakePolicy(), broken)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy with a tokenizer of one token a character, and rows to train on."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("sft")
    save_tiny("llama", folder / "policy")
    tokens = ["<pad>", "<s>", "</s>", *"0123456789+="]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "policy")
    rows = [{"prompt": f"{a}+{b}=", "response": str(a + b)} for a in range(1, 100, 7) for b in range(8)]
    held_out = [{"text": f"{a}+9=", "answer": a + 9} for a in range(15)]
    for name, content in (("train", rows), ("held_out", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def train_sft(workplace: Path, run: Path, *overrides: str) -> str:
    """Run the script; its output."""
    command = [
        *(sys.executable, str(ROOT / "examples" / "train_sft.py")),
        f"exp_manager.explicit_log_dir={run}",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={workplace}/policy",
        f"model.data.data_prefix={{train: {workplace}/train.jsonl, validation: {workplace}/held_out.jsonl}}",
        *("judge.name=exact_answer", "trainer.sft.max_steps=4", "trainer.sft.val_check_interval=2"),
        *("model.global_batch_size=8", "model.micro_batch_size=2", "model.sft.length_params.max_length=6"),
        *("model.optim.lr=1e-3", "model.optim.sched.name=constant", "trainer.threads=1", *overrides),
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_script_trains_the_same_policy_on_one_rank_on_two_and_in_two_starts(workplace):
    train_sft(workplace, workplace / "one")
    train_sft(workplace, workplace / "two", "trainer.devices=2")
    train_sft(workplace, workplace / "parts", "trainer.sft.max_steps=2")
    assert "continuing behind step 2" in train_sft(workplace, workplace / "parts")
    one, two = (
        [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in two[1:]] == pytest.approx([row["loss"] for row in one[1:]], rel=1e-5)
    assert [row.get("validation/reward") for row in one] == [row.get("validation/reward") for row in two]
    assert one[-1]["loss"] < one[1]["loss"]

    weights, two_ranks, two_starts, start = (
        safetensors.torch.load_file(workplace / folder / "model.safetensors")
        for folder in ("one/final", "two/final", "parts/final", "policy")
    )
    assert weights.keys() == two_ranks.keys()
    assert all(torch.allclose(weights[name], two_ranks[name], atol=1e-5) for name in weights)
    assert all(torch.equal(weights[name], two_starts[name]) for name in weights)
    assert any(not torch.equal(weights[name], start[name]) for name in start)
