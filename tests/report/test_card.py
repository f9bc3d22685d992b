"""The model card of `final/`: valid for the hub, true of the run, nothing in it that should not travel."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from rs_aligner.config import TrainRewardModelConfig, TrainRSConfig, TrainSFTConfig
from rs_aligner.config.changes import settings_of
from rs_aligner.record.attempts import Attempt
from rs_aligner.report.card import write_card
from rs_aligner.report.live import CardWriter
from tests.report.made_up import add_look, add_step, group, write_run

SCHEMAS = {
    "train_rs": TrainRSConfig,
    "train_sft": TrainSFTConfig,
    "train_reward_model": TrainRewardModelConfig,
}
ROWS = [
    {"step": 0, "validation/reward": 0.25, "validation/reward_error": 0.25, "validation/accuracy": 0.5},
    {
        "step": 1,
        "reward/mean": 0.5,
        "reward/kept_mean": 1.0,
        "rollouts/total": 4,
        "rollouts/kept": 2,
        "control/random_mean": 0.5,
        "control/random_std": 0.25,
        "control/z": 2.0,
        "tokens/generated": 1234,
        "time/step": 2.0,
        "loss": 0.5,
        "validation/reward": 0.75,
        "validation/reward_error": 0.25,
        "validation/accuracy": 0.75,
    },
    {"step": 2, "loss": 0.5, "validation/reward": 0.5, "validation/reward_error": 0.25},
]


def finished(
    folder: Path,
    base: Path,
    *,
    kind: str = "train_rs",
    rows: Any = ROWS,
    more: Mapping[str, Any] | None = None,
    command: str = "/venv/bin/python /venv/bin/rs-aligner train a=/home/jane/x/train.jsonl k.api_key=sk-1",
) -> Path:
    """A run that has finished, with a model in `final/`."""
    write_run(folder, rows, command=kind)
    tree: dict[str, Any] = {
        "exp_manager": {"explicit_log_dir": str(folder)},
        "pretrained_checkpoint": {"restore_from_path": str(base)},
        "model": {"seed": 7, "data": {"data_prefix": {"train": "/home/jane/x/train.jsonl"}}},
        **(more or {}),
    }
    settings = settings_of(SCHEMAS[kind].model_validate(tree))
    found = {"the model folder": "0123456789abcdef", "the data to train on": "fedcba9876543210"}
    if kind == "train_rs":
        found["the judge"] = "sentiment-77"
    Attempt(settings, found, number=1, command=command).write(folder / "config")
    (folder / "final").mkdir()
    return folder


@pytest.mark.parametrize(
    ("kind", "task", "says"),
    [
        ("train_rs", "text-generation", "after rejection sampling"),
        ("train_sft", "text-generation", "after supervised training"),
        ("train_reward_model", "text-classification", "AutoModelForSequenceClassification"),
    ],
)
def test_the_card_is_one_that_the_hub_reads_and_says_what_the_model_is(
    tmp_path: Path, kind: str, task: str, says: str
) -> None:
    base = tmp_path / "models--acme--tiny-3" / "snapshots" / "0a1b"
    base.mkdir(parents=True)
    head = "---\nlicense: other\nlicense_name: acme\nlanguage: [en]\npipeline_tag: x\n---\n# Tiny"
    (base / "README.md").write_text(head)
    path = write_card(finished(tmp_path / "run", base, kind=kind))
    assert path == tmp_path / "run" / "final" / "README.md"
    card = ModelCard.load(path)
    found = card.data.to_dict()
    assert found["library_name"] == "transformers"
    assert found["pipeline_tag"] == task
    assert found["base_model"] == "acme/tiny-3"
    assert (found["license"], found["license_name"], found["language"]) == ("other", "acme", ["en"])
    assert "rs-aligner" in found["tags"]
    assert says in card.text
    assert "What it was not tested for" in card.text
    assert "0123456789abcdef" in card.text
    assert "`torch`" in card.text
    (path.parent / "adapter_config.json").write_text("{}")
    write_card(tmp_path / "run")
    adapter = ModelCard.load(path).data.to_dict()
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")


def card_of(run: Path) -> str:
    path = write_card(run)
    assert path is not None
    return path.read_text()


def test_figures_are_those_of_the_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tmp_path / "base")
    add_step(run, 1, [group(0, [0.0, 1.0]), group(1, [0.0, 1.0])], [[1], [1]])
    for step, scores in ((0, (0.0, 0.5)), (2, (0.25, 0.75))):
        add_look(run, step, [group(place, [score]) for place, score in enumerate(scores)])
    text = card_of(run)
    assert "was 0.25 ± 0.25 before the first step and is 0.50 ± 0.25 after step 2" in text
    assert "The difference is 0.25 ± 0" in text  # paired: both prompts gained as much
    assert "The weights are those behind step 2." in text
    assert "kept answers score 0.5 higher than as many answers to the same prompts, drawn at random" in text
    assert "| answers sampled | 4 | and 4 sampled to held-out prompts |" in text
    assert "| tokens sampled | 1,234 |" in text
    assert "| answers judged | 8 |" in text
    assert "| the judge | `sentiment-77` |" in text
    assert "| `model.seed` | `7` |" in text
    assert "No second judge has looked" in text


def test_with_patience_the_weights_and_the_figures_are_those_of_the_best_validation(tmp_path: Path) -> None:
    more = {"trainer": {"rs": {"patience": 2}}}
    text = card_of(finished(tmp_path / "run", tmp_path / "base", more=more))
    assert "The weights are those behind step 1, the best of the validations." in text
    assert "is 0.75 ± 0.25 after step 1" in text
    assert "after step 2" not in text


def test_folders_of_the_machine_and_secrets_do_not_travel(tmp_path: Path) -> None:
    base = tmp_path / "somewhere" / "base"
    more = {
        "remote_rm": {
            "in_process": True,
            "judge": {"function": "/home/jane/x/judge.py:f", "kwargs": {"api_key": "sk-2", "n": 3}},
        }
    }
    text = card_of(finished(tmp_path / "run", base, more=more))
    for private in ("jane", str(tmp_path), "sk-1", "sk-2", "/venv"):
        assert private not in text
    assert "rs-aligner train a=.../train.jsonl k.api_key=(not told)" in text
    assert "`.../judge.py:f`" in text
    assert '"n": 3' in text


@pytest.mark.parametrize("name", ["a|b `c` <script>", "__init__", "---"])
def test_a_name_is_a_name(tmp_path: Path, name: str) -> None:
    path = write_card(finished(tmp_path / name, tmp_path / name / "base|x"))
    assert path is not None
    text = path.read_text()
    assert "<script>" not in re.sub(r"`[^`\n]*`", "", text)
    assert ModelCard.load(path).data.to_dict()["library_name"] == "transformers"
    assert text.count("\n---\n") == 1


def test_no_card_says_more_than_is_known(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.5}]
    text = card_of(finished(tmp_path / "run", tmp_path / "base", rows=rows))
    assert "Nobody can tell" in text
    assert "Nothing held out was looked at" in text
    assert "base_model" not in text
    assert "license" not in text.partition("\n---\n")[0]


def test_a_run_that_was_stopped_leaves_the_card_of_its_last_end_alone(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", tmp_path / "base")
    CardWriter(run).finalize("success")
    before = (run / "final" / "README.md").read_text()
    (run / "metrics.jsonl").write_text("")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    CardWriter(run).finalize("success")
    assert (run / "final" / "README.md").read_text() == before


def test_a_card_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = finished(tmp_path / "run", tmp_path / "base")
    (run / "metrics.jsonl").write_text("no row\n\n")
    CardWriter(run).finalize("success")
    assert "final/ has no model card: ValueError" in caplog.text


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/v/bin/python -m rs_aligner sft a=1", "rs-aligner sft a=1"),
        ("/v/bin/python3 -u examples/train_sft.py a=1", "train_sft.py a=1"),
        ("/v/bin/python /v/bin/rs-aligner train a=1", "rs-aligner train a=1"),
    ],
)
def test_the_command_is_that_of_a_person(tmp_path: Path, line: str, shown: str) -> None:
    path = write_card(finished(tmp_path / "run", tmp_path / "base", command=line))
    assert path is not None
    assert f"```\n{shown}\n```" in path.read_text()
