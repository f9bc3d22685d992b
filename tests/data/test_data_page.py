"""docs/data.md, followed line by line: files by the programs that the page names, rows by their commands.

Files are written by the tools themselves (pandas, datasets, pyarrow, jq, gzip). Rows of TRL are as its page
"Dataset formats and types" has them, and its own code tells prompt and answers apart; those of verl,
ShareGPT, OpenAI and NeMo-Aligner are as their docs have them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rs_aligner.api.inputs import rows_of
from rs_aligner.data import load_pairs, load_prompts, load_scored, load_sft_rows
from rs_aligner.data.rows import read_rows
from rs_aligner.reward.judges.verifiers import exact_answer
from tests.conftest import ROOT, does_without
from tests.tiny import FakeTokenizer

pytestmark = pytest.mark.timeout(60)
PAGE = ROOT / "docs" / "data.md"
ROWS = [
    {"text": "2+2?", "answer": "4"},
    {"text": "3+3? äöü", "answer": "6"},
    {"text": "a\u2028b", "answer": "7"},
]


def table(head: str) -> list[list[str]]:
    """The cells of the page's table whose first cell this is."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().removeprefix("`").removesuffix("`") for cell in line[1:-1].split(" | ")])
    return rows


class Letters(FakeTokenizer):
    """A token a letter; a chat is `[user]...[assistant]`."""

    eos_ids = (2,)

    def encode(self, text: str, *, is_chat: bool = False, plain: Sequence[tuple[int, int]] = ()) -> list[int]:
        return [10 + ord(letter) for letter in text]

    def decode(self, ids: Sequence[int], *, raw: bool = False) -> str:
        return "".join(chr(number - 10) for number in ids if number > 9)

    def apply_chat_template(self, messages: Any, tools: Any = None, arguments: Any = None) -> tuple[str, str]:
        return "".join(f"[{one['role']}]{one['content']}" for one in messages) + "[assistant]", ""


TOKENIZER = Letters()
ASKED = ("2+2?", "[user]2+2?[assistant]")


@pytest.mark.parametrize(("how", "name"), table("written with"))
def test_a_file_is_read_as_the_program_wrote_it(
    how: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    program = how.split(maxsplit=1)[0]
    if program in ("jq", "gzip"):
        if shutil.which(program) is None:
            does_without(program)
        subprocess.run(how, shell=True, check=True, timeout=30)
    else:
        library = how.partition(".")[0]
        names: dict[str, Any] = {"rows": ROWS, "json": json}
        if library in ("pandas", "pyarrow", "datasets"):
            names[library] = pytest.importorskip(library, reason="it comes with requirements/dev.txt")
        exec(how, names)  # what it leaves open is closed with its names
        del names
    assert [row for _, row in read_rows([name])] == ROWS
    places = [where for where, _ in read_rows([name])]
    assert len(set(places)) == len(ROWS)
    assert all(where.startswith(f"{name}:") for where in places)


def setting(text: str) -> dict[str, str]:
    """`model.data.columns` as Hydra reads the setting of the page or of a message; empty for none."""
    if text == "none":
        return {}
    parsed: Any = OverridesParser.create().parse_override(text)
    assert parsed.key_or_group == "model.data.columns"
    return {str(name): str(path) for name, path in parsed.value().items()}


def check(command: str, file: str, columns: Mapping[str, str], template: str | None = None) -> None:
    """See that a command reads the sum, and the answers where it wants some."""
    how: dict[str, Any] = {"columns": columns, "template": template}
    if command in ("train", "generate"):
        (prompt,) = load_prompts([file], TOKENIZER, max_prompt_length=99, **how).prompts
        assert prompt.text in ASKED
        assert TOKENIZER.decode(prompt.token_ids) == prompt.text
    elif command == "sft":
        (row,) = load_sft_rows([file], TOKENIZER, max_length=99, **how).rows
        assert TOKENIZER.decode(row.prompt) in ASKED
        assert TOKENIZER.decode(row.response).strip() == "4"
    else:
        assert command == "reward-model"
        (pair,) = load_pairs([file], TOKENIZER, max_length=99, **how).pairs
        chosen, rejected = TOKENIZER.decode(pair.chosen), TOKENIZER.decode(pair.rejected)
        assert (chosen[:-1] in ASKED, chosen[-1], rejected[-1]) == (True, "4", "5")
        assert chosen[:-1] == rejected[:-1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_a_row_of_each_shape_is_read_by_its_commands_with_its_setting(kind: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="it comes with requirements/cpu.txt")
    for number, (_, text, commands, needed) in enumerate(table("whose")):
        path = tmp_path / f"{number}.{kind}"
        row = json.loads(text)
        if kind == "jsonl":
            path.write_text(json.dumps(row))
        elif kind == "parquet":
            datasets.Dataset.from_list([row]).to_parquet(path)
        else:
            datasets.Dataset.from_list([row]).save_to_disk(path)
        for command in commands.split(", "):
            check(command, str(path), setting(needed))


OTHERS = [
    ("train", {"question": "2+2?", "level": 3}),
    ("train", {"data": {"problem": "2+2?", "solution": "4"}}),
    ("train", {"dialog": [{"role": "user", "content": "2+2?"}], "n": 1}),
    ("train", {"a b": [{"from": "human", "value": "2+2?"}]}),
    ("train", {"Instruction": "2+2?", "Output": "4"}),
    ("sft", {"question": "2+2?", "answer": "4"}),
    ("sft", {"instruction": "2+2?", "output": "4"}),
    ("sft", {"prompt": "2+2?", "answer": "4"}),
    ("sft", {"qa": {"query": "2+2?", "reply": "4"}}),
    ("reward-model", {"question": "2+2?", "response_0": "4", "response_1": "5"}),
    ("reward-model", {"prompt": "2+2?", "better": "4", "worse": "5"}),
]


@pytest.mark.parametrize(("command", "row"), OTHERS)
def test_the_advice_for_a_row_that_fits_nothing_makes_it_fit(
    command: str, row: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: has n") as found:
        check(command, str(path), {})
    message = str(found.value)
    assert all(repr(key) in message for key in row)
    advised = message.partition('set "')[2].partition('"')[0]
    check(command, str(path), setting(advised))


def test_a_row_that_no_setting_makes_fit_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for row, said in (
        ({"n": 1}, "no text or chat in it could be the prompt"),
        ({"text": {"0": "a", "1": "b"}}, 'to_json("rows.jsonl", orient="records", lines=True)'),
    ):
        path.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=r"rows\.json:1") as found:
            load_prompts([str(path)], TOKENIZER, max_prompt_length=99)
        assert said in str(found.value)
    path.write_text('{"a": {"b": 1}}')
    for columns, said in (
        ({"text": "a.c"}, "model.data.columns.text is 'a.c', but 'a' has 'b'"),
        ({"text": "b"}, "model.data.columns.text is 'b', but the row has 'a'"),
        ({"text": "a.b.c"}, "but 'a.b' has 1, which has no keys"),
    ):
        with pytest.raises(ValueError, match=r"rows\.json:1: ") as found:
            load_prompts([str(path)], TOKENIZER, columns=columns, max_prompt_length=99)
        assert said in str(found.value)


def test_the_ground_truth_of_verls_rows_reaches_the_verifiers(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="it comes with requirements/cpu.txt")
    row = next(json.loads(text) for whose, text, *_ in table("whose") if whose == "verl")
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "verl.parquet")
    (prompt,) = load_prompts([str(tmp_path / "verl.parquet")], TOKENIZER, max_prompt_length=99).prompts
    assert exact_answer([prompt.text], ["so #### 4"], [prompt.metadata]) == [1.0]
    assert {key: prompt.metadata[key] for key in row} == row
    scored = {**row, "responses": ["4", "5"], "rewards": [1, 0]}
    (tmp_path / "scored.json").write_text(json.dumps([scored], indent=1))
    (group,) = load_scored([str(tmp_path / "scored.json")], TOKENIZER, max_length=99)
    assert group.prompt.text == ASKED[1]
    assert group.prompt.metadata["answer"] == "4"


def test_trl_itself_tells_prompt_and_answers_of_a_pair_apart_as_we_do(tmp_path: Path) -> None:
    data_utils = pytest.importorskip("trl.data_utils", reason="requirements/dev.txt has it")
    row = next(json.loads(text) for whose, text, *_ in table("whose") if whose.endswith("implicit prompt"))
    path = tmp_path / "pairs.json"
    read = []
    for one in (row, data_utils.extract_prompt(dict(row))):
        path.write_text(json.dumps(one))
        read.append(load_pairs([str(path)], TOKENIZER, max_length=99).pairs)
    assert read[0] == read[1]


def test_tables_of_python_are_read_as_their_files_are(tmp_path: Path) -> None:
    datasets, pandas = (
        pytest.importorskip("datasets", reason="it comes with requirements/cpu.txt"),
        pytest.importorskip("pandas", reason="it comes with requirements/cpu.txt"),
    )
    rows = [{"prompt": "a", "n": 1, "who": {"name": "x"}}, {"prompt": "b", "n": 2, "who": {"name": "y"}}]
    wanted = [{"text": row["prompt"], **row} for row in rows]
    table_ = datasets.Dataset.from_list(rows)
    for given in (rows, table_, pandas.DataFrame(rows), table_.to_iterable_dataset(), table_.data.table):
        assert rows_of("prompts", given) == wanted
    chosen = table_.select([1])
    assert rows_of("prompts", chosen) == wanted[1:]
    mixed = pandas.DataFrame([{"prompt": "a", "n": 1}, {"prompt": "b", "n": "many"}, {"prompt": "c"}])
    assert [row["n"] for row in rows_of("prompts", mixed)] == [1, "many", None]
    days = pandas.DataFrame({"prompt": ["a"], "day": [pandas.Timestamp("2026-01-02")], "x": [float("nan")]})
    assert rows_of("prompts", days) == [{"text": "a", "prompt": "a", "day": "2026-01-02T00:00:00", "x": None}]
    with pytest.raises(ValueError, match=r"splits 'train': give one, prompts=\.\.\.\['train'\]"):
        rows_of("prompts", datasets.DatasetDict({"train": table_}))
