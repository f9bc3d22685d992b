"""Training a reward model: the loop with a plain fake, the script for real."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from rs_aligner import stopping
from rs_aligner.config import TrainRewardModelConfig
from rs_aligner.record.run import Run
from rs_aligner.rollout import PreferencePair
from rs_aligner.stopping import Stopped
from rs_aligner.trainers.preference import PreferenceTrainer
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[2]
PAIRS = [PreferencePair((i,), (100 + i,)) for i in range(10)]


@dataclass(frozen=True)
class FakeStats:
    loss: float = 0.5
    grad_norm: float = 1.0
    learning_rate: float = 0.1
    skipped: Sequence[Any] = ()
    figures: dict[str, float] = field(default_factory=lambda: {"accuracy": 0.75})


class FakeModel:
    """Orders a tenth more of the held-out pairs right with each step up to the fifth, and then fewer."""

    def __init__(self) -> None:
        self.version = 0
        self.trained: list[list[PreferencePair]] = []
        self.asked: list[int] = []

    def train(self, rows: Sequence[PreferencePair]) -> list[FakeStats]:
        self.trained.append(list(rows))
        return [FakeStats()]

    def evaluate(self, pairs: Sequence[PreferencePair]) -> dict[str, float]:
        self.asked.append(len(pairs))
        return {"loss": 0.7, "accuracy": 0.5 - abs(self.version - 5) / 10}

    def gather(self, item: Any) -> list[Any]:
        return [item]

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


def fit(folder: Path, model: FakeModel, held_out: int = 3, **loop: Any) -> list[dict[str, Any]]:
    """Train in `folder`; the rows of its metrics."""
    tree = {
        "trainer": {"rm": {"val_check_interval": 1, "max_epochs": 2, **loop}},
        "exp_manager": {"explicit_log_dir": str(folder)},
        "pretrained_checkpoint": {"restore_from_path": "unused"},
        "model": {"global_batch_size": 3, "data": {"data_prefix": {"train": "unused"}}},
    }
    config = TrainRewardModelConfig.model_validate(tree)
    with Run(config.exp_manager, is_first=True) as run:
        PreferenceTrainer(config, model, PAIRS, PAIRS[:held_out], run).fit()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_epoch_passes_over_all_pairs_and_each_validation_over_all_held_out_ones(tmp_path):
    model = FakeModel()
    metrics = fit(tmp_path, model)
    assert [row["step"] for row in metrics] == list(range(9))
    assert sorted(pair.chosen for batch in model.trained[:4] for pair in batch) == [
        pair.chosen for pair in PAIRS
    ]
    assert [len(batch) for batch in model.trained] == [3, 3, 2, 2] * 2
    assert model.asked == [3] * 9
    assert metrics[0] == {"step": 0, "validation/loss": 0.7, "validation/accuracy": 0.0}
    assert metrics[2]["validation/accuracy"] == pytest.approx(0.2)
    assert (metrics[2]["loss"], metrics[2]["accuracy"], metrics[2]["lr"]) == (0.5, 0.75, 0.1)


def test_the_best_checkpoint_by_held_out_accuracy_stays_with_the_two_newest(tmp_path):
    fit(tmp_path, FakeModel())
    assert sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").iterdir()) == [5, 7, 8]


def test_without_held_out_pairs_there_is_no_validation(tmp_path):
    model = FakeModel()
    metrics = fit(tmp_path, model, held_out=0)
    assert model.asked == []
    assert [row["step"] for row in metrics] == list(range(1, 9))


def test_a_run_that_is_continued_trains_on_what_an_uninterrupted_one_does(tmp_path):
    whole, parts = FakeModel(), FakeModel()
    fit(tmp_path / "whole", whole)
    fit(tmp_path / "parts", parts, max_steps=3)
    metrics = fit(tmp_path / "parts", parts)
    assert parts.trained == whole.trained
    assert [row["step"] for row in metrics] == list(range(9))


def test_a_run_that_stops_and_one_with_too_many_bad_steps_say_where_they_go_on(tmp_path):
    def notes(model: FakeModel, error: type[BaseException]) -> list[str]:
        with pytest.raises(error) as ended:
            fit(tmp_path, model, val_check_interval=4)
        return ended.value.__notes__

    class Asked(FakeModel):
        def train(self, rows: Sequence[PreferencePair]) -> list[FakeStats]:
            stopping.ask("a test")
            return super().train(rows)

    class Bad(FakeModel):
        def train(self, rows: Sequence[PreferencePair]) -> list[FakeStats]:
            return [FakeStats(skipped=rows)]

    checkpoints = tmp_path / "checkpoints"
    try:
        assert notes(Asked(), Stopped) == [f"the run goes on behind step 1 ({checkpoints}/step_000001)"]
    finally:
        stopping.forget()
    found = notes(Bad(), FloatingPointError)
    assert found == [f"the run goes on behind step 4 ({checkpoints}/step_000004)"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy, and pairs whose better answer has the letters in order."""
    folder = tmp_path_factory.mktemp("preference")
    save_tiny_with_tokenizer(folder / "policy")
    for name, letters in (("train", "abcdefghijklmnop"), ("held_out", "qrstuv")):
        rows = [
            {"prompt": f"{letter}:", "chosen": f"{letter}xyz{letter}", "rejected": f"{letter}zyx"}
            for letter in letters
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train_reward_model(workplace: Path, run: Path, *overrides: str, status: int = 0) -> str:
    """Run the script; its output."""
    prefix = f"{{train: {workplace}/train.jsonl, validation: {workplace}/held_out.jsonl}}"
    command = [
        *(sys.executable, str(ROOT / "examples" / "train_reward_model.py")),
        f"exp_manager.explicit_log_dir={run}",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={workplace}/policy",
        f"model.data.data_prefix={prefix}",
        *("trainer.rm.max_steps=4", "trainer.rm.val_check_interval=2", "trainer.threads=1"),
        *("model.global_batch_size=8", "model.micro_batch_size=2", "model.optim.lr=1e-3"),
        *(
            "trainer.rm.max_epochs=2",
            "model.optim.sched.name=constant",
            "trainer.accelerator=cpu",
            *overrides,
        ),
    ]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_script_trains_the_same_reward_model_on_one_rank_on_two_and_in_two_starts(workplace):
    train_reward_model(workplace, workplace / "one")
    train_reward_model(
        workplace, workplace / "two", "trainer.devices=2", "model.tensor_model_parallel_size=2"
    )
    train_reward_model(workplace, workplace / "parts", "trainer.rm.max_steps=2")
    assert "continuing behind step 2" in train_reward_model(workplace, workplace / "parts")
    one, two = (
        [json.loads(line) for line in (workplace / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 1, 2, 3, 4]
    for key in ("loss", "validation/loss", "validation/reward_mean", "validation/reward_std"):
        figures = [[row[key] for row in rows if key in row] for rows in (one, two)]
        assert figures[1] == pytest.approx(figures[0], rel=1e-4), key
    assert one[-1]["validation/loss"] < one[0]["validation/loss"]

    weights, two_ranks, two_starts = (
        safetensors.torch.load_file(workplace / run / "final" / "model.safetensors")
        for run in ("one", "two", "parts")
    )
    assert weights.keys() == two_ranks.keys()
    assert all(torch.allclose(weights[name], two_ranks[name], atol=1e-4) for name in weights)
    assert all(torch.equal(weights[name], two_starts[name]) for name in weights)
    assert_transformers_orders_alike(workplace, one[-1]["validation/accuracy"])


def assert_transformers_orders_alike(workplace: Path, accuracy: float) -> None:
    """Whole batches of padded texts, as a user of `transformers` would score them."""
    final = workplace / "one" / "final"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(final, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(final)
    rows = [json.loads(line) for line in (workplace / "held_out.jsonl").read_text().splitlines()]
    texts = [row["prompt"] + row[key] + "</s>" for key in ("chosen", "rejected") for row in rows]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, ids))
    padded = torch.tensor([x + [model.config.pad_token_id] * (width - len(x)) for x in ids])
    with torch.no_grad():
        chosen, rejected = model(padded).logits.squeeze(1).chunk(2)
    assert float((chosen > rejected).double().mean()) == pytest.approx(accuracy)


@pytest.mark.slow
def test_what_has_to_be_mended_is_one_message_before_anything_is_loaded(workplace, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"}\n')
    said = train_reward_model(
        workplace, tmp_path / "run", f"model.data.data_prefix={{train: {bad}}}", status=2
    )
    assert said.splitlines()[-1] == (
        f"error: {bad}:2: has no 'rejected' but 'prompt', 'chosen'; no two texts in it could be the answers"
    )
    said = train_reward_model(workplace, tmp_path / "run", "trainer.rm.max_step=3", status=2)
    assert "trainer.rm.max_step is not a key; the nearest one is trainer.rm.max_steps" in said
