"""`rs-aligner init`, as a stranger calls it, and `plan` of the config that it has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rs_aligner.cli import init
from rs_aligner.cli.main import main

JUDGE = "def score(prompts, responses, metadata):\n    return [float(len(r)) for r in responses]\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_data: Path) -> Path:
    """A folder with what a user brings."""
    (tmp_path / "model").symlink_to(test_data / "stories260k")
    rows = [{"text": f"There was a cat number {i}."} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"question": f"Who are you, number {i}?"} for i in range(20)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "judge.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_config_is_written_that_plans(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "model", "--prompts", "prompts.jsonl", "--judge", "judge.py:score", "--yes"]
    assert main(["init", *flags]) == 0
    told = capsys.readouterr().out
    for part in (
        "260,032 parameters",
        "'There was a cat number 0.'",
        "judge: it scores",
        "rollouts a step         160",
        "rs-aligner train --config-dir . --config-name mine",
    ):
        assert part in told
    written = yaml.safe_load((place / "mine.yaml").read_text())
    assert written["remote_rm"]["judge"]["function"] == f"{place / 'judge.py'}:score"
    assert not (place / "runs").exists()
    with pytest.raises(SystemExit) as refused:
        main(["init", *flags])
    assert refused.value.code == 2
    assert "mine.yaml exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--model must be given"),
        (["--model", "nowhere"], "--model is 'nowhere'"),
        (["--model", "model"], "--prompts must be given"),
        (["--model", "model", "--prompts", "nothing.jsonl"], "there is no file nothing.jsonl"),
        (["--model", "model", "--prompts", "questions.jsonl"], "--template must be given"),
        (["--model", "model", "--prompts", "prompts.jsonl"], "--judge must be given"),
        (["--model", "model", "--prompts", "prompts.jsonl", "--judge", "exact"], "one of exact_answer,"),
        (["--model", "model", "--prompts", "prompts.jsonl", "--judge", "no.py:f"], "there is no such file"),
        (["--model", "model", "--prompts", "prompts.jsonl", "--judge", "localhost:1"], "no judge is ready"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    flags: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["init", "--yes", *flags])
    assert refused.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(place.glob("*.yaml"))


def test_what_is_missing_is_asked_for_on_a_terminal(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["", "model", "questions.jsonl", "Q: {question}\\nA:", "questions.jsonl", "judge.py:score"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.setattr(init.sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["init", "conf", "--name", "asked"]) == 0
    written = yaml.safe_load((place / "conf" / "asked.yaml").read_text())
    assert written["model"]["data"]["prompt_template"] == "Q: {question}\nA:"
    assert written["trainer"]["rs"]["val_check_interval"] == 10
    assert "'Q: Who are you, number 0?\\nA:'" in capsys.readouterr().out
