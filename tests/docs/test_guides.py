"""The guides keep their word: commands pass the checks, programs' arguments fit, keys are keys.

Every command of a guide is looked at by one of the tests here, or run by the test that `ELSEWHERE` names.
Left out on purpose: training by them, which tests of the same commands do (`tests/first_run`, `tests/e2e`).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import rs_aligner
from rs_aligner.api import TrainResult, inputs
from rs_aligner.cli.main import main
from rs_aligner.config import (
    GenerateConfig,
    ServeRewardConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
)
from rs_aligner.config.aliases import MEANT
from rs_aligner.config.keys import leaves, walk
from tests.config.conftest import POLICY, compose
from tests.conftest import ROOT
from tests.fake_run import FakeRun

pytestmark = pytest.mark.timeout(120)
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
COMMANDS = {
    "train": ("train_rs", TrainRSConfig),
    "sft": ("train_sft", TrainSFTConfig),
    "reward-model": ("train_reward_model", TrainRewardModelConfig),
    "serve": ("serve_reward", ServeRewardConfig),
    "generate": ("generate", GenerateConfig),
}
ELSEWHERE = {  # by what they begin with
    "rs-aligner plan train --config-dir . --config-name mine": "tests/test_wheel.py",
    "rs-aligner check train --config-dir . --config-name mine": "tests/cli/test_init.py",
    ".venv/bin/python examples/": "tests/first_run/test_readme.py",
}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in that language, also those of a list."""
    found = re.findall(rf"^([ ]*)```{language}\n(.*?)^\1```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def lines(page: Path) -> list[str]:
    """The command lines of a page."""
    texts = (block.replace("\\\n", " ") for block in blocks(page, "bash"))
    return [" ".join(line.split()) for text in texts for line in text.splitlines() if line.strip()]


def named(*commands: str) -> list[Any]:
    """A test's parameter for each line of a guide that is one of these commands."""
    return [
        pytest.param(shlex.split(line)[1:], id=f"{page.stem}: {' '.join(shlex.split(line)[:3])}")
        for page in GUIDES
        for line in lines(page)
        if line.startswith(tuple(f"rs-aligner {command} " for command in commands))
    ]


def test_every_command_of_a_guide_is_tried() -> None:
    begins = [
        *(f"rs-aligner {name} " for name in (*COMMANDS, "report", "dataset", "train_gpt_rs_actor.py")),
        *("export ", "bash scripts/slurm/submit.sh --dry-run "),
        *ELSEWHERE,
    ]
    assert [line for page in GUIDES for line in lines(page) if not line.startswith(tuple(begins))] == []
    assert all((ROOT / file).is_file() for file in ELSEWHERE.values())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands name, just real enough for the checks; and a run that is over, in runs/mine."""
    for folder in (
        "path/to/model",
        "runs/mine/final",
        "runs/solver/final",
        "runs/rm/final",
        "runs/warm/final",
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(
            json.dumps({**POLICY, "max_position_embeddings": 4096})
        )
        (tmp_path / folder / "model.safetensors").touch()
    (tmp_path / "gsm8k").mkdir()
    files = (
        "my_prompts",
        "my_held_out_prompts",
        "gsm8k/train",
        "gsm8k/test",
        "worked",
        "pairs",
        "held_out_pairs",
    )
    for name in files:
        row = {"text": "Once", "question": "1 + 1?", "answer": "2", "prompt": "1 + 1?", "response": "2"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**row, "chosen": "2", "rejected": "3"}) + "\n")
    (tmp_path / "my_judge.py").write_text(
        "def score(prompts, responses, metadata):\n    return [1.0] * len(prompts)\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", named(*COMMANDS))
def test_a_command_passes_the_check(words: list[str], place: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, schema = COMMANDS[words[0]]
    overrides = words[1:]
    if overrides[0] == "--config-name":
        name, overrides = overrides[1], overrides[2:]
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(compose(name, overrides), schema)
    assert caplog.records == []


@pytest.mark.parametrize("words", named("report", "dataset"))
def test_a_command_on_a_run_works(words: list[str], place: Path) -> None:
    FakeRun(place / "runs" / "mine").start(steps=1)
    assert main(words) == 0
    made = words[words.index("--out") + 1] if "--out" in words else "runs/mine/report.html"
    assert (place / made).stat().st_size > 0


# Slurm


def test_the_guide_to_slurm_shows_what_would_be_submitted() -> None:
    [script] = blocks(ROOT / "docs" / "guides" / "slurm.md", "bash")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    submitted, judge, trainer = [shlex.split(line, comments=True) for line in done.stdout.splitlines()]
    assert submitted[0] == "sbatch"
    assert "judge.name=final_answer" in judge
    assert "model.data.data_prefix.train=my_prompts.jsonl" in trainer
    assert not (ROOT / "runs" / "first").exists()


# Coming from elsewhere


def tables(page: Path, left: str) -> list[tuple[str, str]]:
    """The first names in both cells of each row, of the table whose first column is called that."""
    text = page.read_text()
    table = text[text.index(f"| {left} | here |") :].partition("\n\n")[0]
    return re.findall(r"^\| `([^`]+)` \| `([^`]+)`", table, re.MULTILINE)


KEYS = {key for key, _ in walk(TrainRSConfig)} | {leaf.key for leaf in leaves(TrainRSConfig)}
TRL, TRLX = (ROOT / "docs" / "guides" / f"from_{name}.md" for name in ("trl", "trlx"))


@pytest.mark.parametrize(
    ("page", "left"), [(TRL, "`GRPOConfig`"), (TRLX, "`TRLConfig`")], ids=["trl", "trlx"]
)
def test_each_key_on_the_right_is_a_key_here(page: Path, left: str) -> None:
    rows = tables(page, left)
    assert len(rows) > 20
    assert [key for _, key in rows if key not in KEYS] == []


def test_a_name_of_trls_is_one_and_means_what_its_error_says() -> None:
    rows = tables(TRL, "`GRPOConfig`")
    assert [(old, new) for old, new in rows if new not in MEANT.get(old, (new,))] == []
    assert sum(old in MEANT for old, _ in rows) >= 18
    known: set[str] = set()
    for package, file in (("trl", "trainer/grpo_config.py"), ("transformers", "training_args.py")):
        [folder] = importlib.util.find_spec(package).submodule_search_locations  # found, and not imported
        known |= set(re.findall(r"^    (\w+): ", (Path(folder) / file).read_text(), re.MULTILINE))
    assert [old for old, _ in rows if old not in known] == []


def test_the_tables_of_nemo_aligners_keys_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("nemo_page")
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run python scripts/nemo_page.py"
    assert len(re.findall(r"^\| `", text, re.MULTILINE)) > 60


@pytest.mark.parametrize("words", named("train_gpt_rs_actor.py"))
def test_an_old_command_line_is_answered_with_a_command_that_passes(
    words: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("# no effect here, left out: model.data.data_prefix.test=")
    [command] = [line for line in told.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    program, name, *overrides = shlex.split(command)
    assert (program, name) == ("rs-aligner", "train")
    assert "model.rs.offload_adam_states=true" in overrides
    parallel = "trainer.devices=4"  # the ranks that it is to be spread over
    load_config(compose("train_rs", [*overrides, parallel]), TrainRSConfig)


@pytest.mark.parametrize("page", [TRL, TRLX], ids=["trl", "trlx"])
def test_what_a_program_hands_over_is_taken(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rs_aligner.reward.judges.callables import judge_of, metrics_by
    from rs_aligner.rollout import Group, Prompt, Rollout, Score

    calls = []

    def train(**given: Any) -> TrainResult:
        calls.append(given)
        tree = inputs.tree_from(given["config"], output_dir="runs/new")
        keys = inputs.keys_of(tree, inputs.rows_of("prompts", given["prompts"]))
        rows: Sequence[Any] = given["prompts"]
        judge = judge_of(given["reward_fn"], keys)
        texts = [row if isinstance(row, str) else row["prompt"] for row in rows]
        metadata = [{} if isinstance(row, str) else row for row in rows]
        scores = judge.score_texts(texts, ["of the sea"] * len(rows), metadata)
        assert len(scores) == len(rows)
        figures = {"reward/kept_mean": max(scores)}
        if "metric_fn" in given:
            group = Group(Prompt("p", "text", (1,)), [Rollout(0, 0, (1,), "a", "stop")], [Score(1.0)])
            means = metrics_by(given["metric_fn"])([group])
            figures |= {f"validation/metrics/{name}": value for name, value in means.items()}
        inputs.set_key(tree, "pretrained_checkpoint.restore_from_path", given["model_path"], "model_path")
        inputs.set_key(tree, "model.data.data_prefix.train", "my_prompts.jsonl", "prompts")
        load_config(tree, TrainRSConfig)
        return TrainResult(Path("runs/new"), Path("runs/new/final"), [figures])

    monkeypatch.setattr(rs_aligner, "train", train, raising=False)
    [program] = blocks(page, "python")
    exec(compile(program, str(page), "exec"), {})
    assert len(calls) == 1


def test_the_program_that_makes_pairs_of_nemo_aligners_comparisons_makes_them(place: Path) -> None:
    page = ROOT / "docs" / "guides" / "from_nemo_aligner.md"
    texts = ["User: 1 + 1? Assistant: 2", "User: 1 + 1? Assistant: 3"]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (place / "train_comparisons.jsonl").write_text(rows)
    [program] = blocks(page, "python")
    exec(compile(program, str(page), "exec"), {})
    [pair] = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    assert pair == {"prompt": "User: 1 + 1? Assistant:", "chosen": " 2", "rejected": " 3"}


def test_every_program_of_a_guide_is_tried() -> None:
    programs = {page.stem: len(blocks(page, "python")) for page in GUIDES}
    here = {"from_nemo_aligner": 1, "from_trl": 1, "from_trlx": 1}
    in_first_run = {"one_machine": 1}  # tests/first_run/test_readme.py
    assert {name: number for name, number in programs.items() if number} == here | in_first_run
