"""docs/stability.md lists what is public as the code has it: names, commands, statuses, files, the wire.

A list that grows fails here until the page has it: that is when somebody decides whether it is public.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

import rs_aligner
from rs_aligner import exit_status, progress
from rs_aligner.api import Run, TrainResult
from rs_aligner.api.serving import Served
from rs_aligner.cli.table import COMMANDS
from rs_aligner.commands.best_of_n import answer_row
from rs_aligner.record.format import FORMAT
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.record.status import Status, read_status
from rs_aligner.rollout import Group, Prompt, Rollout, Score
from tests.conftest import ROOT
from tests.fake_run import FakeRun

PAGE = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text below a heading of the page."""
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def names(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def first_column(text: str) -> list[str]:
    """The names in the first cells of the rows of a table."""
    return [name for cell in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in names(cell)]


def listed(start: str, text: str) -> set[str]:
    """The names in the list that begins with that."""
    return set(names(re.split(r"\.\s", text.partition(start)[2], maxsplit=1)[0]))


def test_names_of_python() -> None:
    text = section("Python")
    expected = {f"rs_aligner.{name}" for name in (*rs_aligner.__all__, "__version__")}
    assert set(first_column(text)) == expected
    [row] = re.findall(r"^\| `rs_aligner\.Run` \| (.*) \|$", text, re.MULTILINE)
    assert set(names(row)) == {name for name in vars(Run) if not name.startswith("_")}
    for kind in (TrainResult, Served):
        fields = [field.name for field in dataclasses.fields(kind)]
        assert set(fields) <= set(names(text)), kind.__name__


@pytest.mark.parametrize("name", [name for name in names(section("Python")) if name.count(".") > 1])
def test_a_name_of_a_part_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    file = ROOT / Path(*module.split("."))
    source = (
        file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    )  # read, since some bring torch
    tree = ast.parse(source.read_text())
    defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert attribute in defined | imported


def test_commands() -> None:
    table = section("The command line")
    named = [*first_column(table), "plan", "check"]
    assert sorted(named) == sorted(command.name for command in COMMANDS)


def test_exit_statuses() -> None:
    told = {int(number) for number in re.findall(r"^\| (\d+) \|", section("Exit statuses"), re.MULTILINE)}
    assert told == {value for name, value in vars(exit_status).items() if name.isupper()}


def test_files_of_a_run_and_the_fields_in_them(tmp_path: Path) -> None:
    text = section("A run's folder")
    assert f"The format is {FORMAT};" in text
    run = FakeRun(tmp_path / "run")
    run.start(steps=1)
    named = {name.partition("/")[0] for name in first_column(text)}
    made = {path.name for path in run.folder.iterdir()} - {"metrics.sums", "policy.json"}
    assert made - named == set()
    assert {"format", "command", "rs_aligner"} <= json.loads((run.folder / "run.json").read_text()).keys()
    fields = {field.name for field in dataclasses.fields(LedgerRow)}
    assert listed("A row of the ledger:", text) == fields
    [step] = (run.folder / "rollouts").glob("step_000001.jsonl")
    assert json.loads(step.read_text().splitlines()[0]).keys() == fields


def test_status_json(tmp_path: Path) -> None:
    status = Status(tmp_path)
    status.end(None)
    text = section("A run's folder")
    assert listed("`status.json`:", text) == read_status(tmp_path).keys()
    assert listed("A state is one of", text) == set(get_args(progress.Phase))


def test_the_file_of_answers() -> None:
    rollouts = [Rollout(0, index, (1, 2), "The answer is 2", "stop") for index in range(2)]
    scores: list[Any] = [Score(1.0, {"right": 1.0}, precision="float32")] * 2
    row = answer_row(Group(Prompt("p", "text", (1,)), rollouts, scores), "majority")
    text = section("A run's folder")
    assert listed("The file of `generate`, a row a prompt:", text) == row.keys()


def test_the_wire() -> None:
    """Read of the source, for PyTriton is slow to import."""
    source = (ROOT / "rs_aligner" / "reward" / "server" / "serving.py").read_text()
    lists = re.findall(r"^(?:IN|OUT)PUTS = \[(.*?)^\]", source, re.DOTALL | re.MULTILINE)
    inputs, outputs = (re.findall(r'Tensor\(name="(\w+)"', text) for text in lists)
    told = dict(re.findall(r"^\| (\w+) \| (.*) \|$", section("The judge's wire"), re.MULTILINE))
    assert sorted(names(told["inputs"])) == sorted(inputs)
    assert sorted(names(told["outputs"])) == sorted(outputs)
    assert names(told["header"])[0] in (ROOT / "rs_aligner" / "remote" / "triton.py").read_text()
