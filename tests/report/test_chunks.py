"""The ledger as script files beside the page: all of it, safe to load, and written once."""

from __future__ import annotations

import base64
import json
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from benchmarks.made_up_run import Size, grow_run, make_run
from rs_aligner.record.format import RunRecord
from rs_aligner.record.ledger import Ledger, held_out_name, step_name
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.report import chunks
from rs_aligner.report.chunk_parts import PartWriter
from rs_aligner.report.chunks import Chunks, write_chunks
from rs_aligner.report.run_data import NotARun, open_run
from rs_aligner.report.token_texts import TokenTexts, find_tokenizer, read_token_texts
from rs_aligner.report.viewed_row import VIEWED_ROWS
from rs_aligner.rollout import Group, Prompt, Rollout, Score
from rs_aligner.selection.bars import TopK
from rs_aligner.selection.chain import Chain

SMALL = Size(steps=3, prompts=5, answers=6, limit=60, held_out_interval=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("run") / "made"
    make_run(folder, SMALL)
    return folder


def content(script: bytes) -> Any:
    """What a script hands over."""
    return json.loads(script[script.index(b"(") + 1 : script.rindex(b")")])


def parts(folder: Path, entry: chunks.Entry) -> list[Any]:
    return [content((folder / "report" / name).read_bytes()) for name in entry.files]


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file lies under each name: another one is there when it has been written again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "report").iterdir()
    }


def as_shown(row: LedgerRow) -> dict[str, Any]:
    """A row of the ledger as a part has it, written out here once more."""
    return {
        "index": row.index,
        "text": row.response,
        "ids": list(row.token_ids),
        "reason": row.reason,
        "ended": row.finish_reason,
        "version": row.policy_version,
        "length": len(row.token_ids),
        "seed": str(row.seed),
        "kept": row.kept,
        "score": row.reward,
        "components": row.components,
        "watched": row.watched,
        "failure": row.failure,
        "watched_failure": row.watched_failure,
        "judge": row.judge,
        "by_design": row.by_design,
        "surprise": [min(65535, max(0, round(-100 * value))) for value in row.log_probs],
    }


def as_found(part: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    absent = {
        "kept": False,
        "score": None,
        "watched": None,
        "failure": None,
        "watched_failure": None,
        "judge": "",
        "by_design": True,
    }
    values = answer.get("components", [])
    named = {
        name: value for name, value in zip(part["components"], values, strict=False) if value is not None
    }
    surprise = array("H", base64.b64decode(answer.get("surprise", ""))).tolist()
    return {**absent, **answer, "components": named, "surprise": surprise}


def test_every_rollout_of_the_ledger_is_in_the_parts_as_it_is(made: Path) -> None:
    found = write_chunks(made)
    ledger = Ledger(made / "rollouts")
    assert [(entry.step, entry.is_held_out) for entry in found.entries] == [
        *[(0, True), (1, False), (2, False), (2, True), (3, False), (3, True)]
    ]
    for entry in found.entries:
        name = held_out_name(entry.step) if entry.is_held_out else step_name(entry.step)
        rows = ledger.read_named(name)
        shown = [
            ((prompt["group"], prompt["id"], prompt["text"], prompt["ids"], json.loads(prompt["row"])), one)
            for part in parts(made, entry)
            for prompt in part["prompts"]
            for one in [as_found(part, answer) for answer in prompt["answers"]]
        ]
        assert [one for _, one in shown] == [as_shown(row) for row in rows]
        assert [prompt for prompt, _ in shown] == [
            (row.group, row.prompt_id, row.prompt, list(row.prompt_token_ids), row.metadata) for row in rows
        ]
        summary, scores = entry.summary, [row.reward for row in rows if row.reward is not None]
        assert (summary.rollouts, summary.kept, summary.failed) == (
            *(len(rows), sum(row.kept for row in rows), len(rows) - len(scores)),
        )
        assert (summary.low, summary.high) == (min(scores), max(scores))
        assert summary.total == pytest.approx(sum(scores))
        assert summary.reasons == {
            reason: sum(row.reason == reason for row in rows) for reason in {row.reason for row in rows}
        }
        assert summary.components == ["correct", "form"]
        assert summary.watched
    assert found.num_rollouts == 3 * 5 * 6 + 3 * 5 * 2


def test_the_prompts_file_says_where_each_prompt_is(made: Path) -> None:
    found = write_chunks(made)
    said = content((made / "report" / "prompts.js").read_bytes())
    assert said["names"] == [entry.name for entry in found.entries]
    sizes = {}
    for is_held_out, prompt_id, places in said["prompts"]:
        for number, part, group, size in places:
            entry = found.entries[number]
            assert entry.is_held_out == is_held_out
            there = [one for one in parts(made, entry)[part]["prompts"] if one["group"] == group]
            assert [(one["id"], len(one["answers"])) for one in there] == [(prompt_id, size)]
            sizes[number, group] = size
    assert sum(sizes.values()) == found.num_rollouts


def test_a_chat_is_there_in_turns_and_only_where_the_prompt_was_made_of_it(made: Path) -> None:
    found = write_chunks(made)
    prompts = [prompt for part in parts(made, found.entries[1]) for prompt in part["prompts"]]
    rows = [json.loads(prompt["row"]) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        expected = [{"role": one["role"], "text": one["content"]} for one in row.get("messages", [])]
        assert prompt.get("chat", []) == expected
    assert sum("chat" in prompt for prompt in prompts) == 3


@pytest.fixture
def run(tmp_path: Path) -> Path:
    RunRecord("train_rs", attempts=1).write(tmp_path)
    return tmp_path


def write_step(run: Path, texts: list[str], step: int = 1, prompt: str = "say", **metadata: Any) -> None:
    """A step of one prompt, of which the last answer is kept."""
    rollouts = [Rollout(0, index, (1, 2), text, "stop", step - 1) for index, text in enumerate(texts)]
    scores: list[Any] = [Score(float(index)) for index in range(len(texts))]
    groups = [Group(Prompt("p", prompt, (1,), metadata), rollouts, scores)]
    Ledger(run / "rollouts").append(step, groups, Chain([TopK(1)]).select(groups, 0.5))


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "\u2028\u2029\x00\x1f\\\"'`${1}",
    "half of a pair \ud83d",
    "😀 \ufeff \uffff",
]


def test_nothing_that_a_model_writes_ends_a_script_or_a_line_of_one(run: Path) -> None:
    write_step(run, HOSTILE, prompt=HOSTILE[0], __proto__=HOSTILE[0], messages="none")
    found = write_chunks(run)
    scripts = [path.read_bytes() for path in sorted((run / "report").glob("*.js"))]
    for script in [*scripts, found.index.encode(), *(one.encode() for one in found.inside)]:
        assert b"<" not in script
        assert "\u2028".encode() not in script
        assert "\u2029".encode() not in script
        assert script.rstrip().count(b"\n") == 0  # one call, so the page's line is the script's
    answers = [
        answer["text"] for part in parts(run, found.entries[0]) for answer in part["prompts"][0]["answers"]
    ]
    assert answers == [text.replace("\ud83d", "\ufffd") for text in HOSTILE]
    assert len(found.inside) == 2  # the step and the prompts; no tokenizer is there
    assert not found.has_tokens


def test_what_was_written_is_not_written_again_while_a_run_goes_on(tmp_path: Path) -> None:
    before: dict[str, tuple[int, int]] = {}
    names: list[set[str]] = []
    for _ in grow_run(tmp_path, SMALL):
        write_chunks(tmp_path)
        now = states(tmp_path)
        assert {name: now[name] for name in before if name[0] in "rht"} == {
            name: state for name, state in before.items() if name[0] in "rht"
        }
        names.append({name for name in now if name not in before})
        before = now
    assert names[1] == {"rollouts_000001.js"}
    assert names[2] == {"rollouts_000002.js", "held_out_000002.js"}
    assert not list((tmp_path / "report").glob("*.tmp"))


def test_a_step_that_is_made_anew_or_taken_back_leaves_nothing_old(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    write_chunks(run)
    before = states(run)
    ledger = Ledger(run / "rollouts")
    ledger.forget(step_name(3))
    ledger.forget(held_out_name(3))
    write_step(run, ["another", "answer"], step=2)
    found = write_chunks(run)
    assert [entry.files for entry in found.entries if entry.step > 1] == [
        *(["rollouts_000002.js"], ["held_out_000002.js"])
    ]
    assert set(states(run)) == set(before) - {"rollouts_000003.js", "held_out_000003.js"}
    assert states(run)["rollouts_000001.js"] == before["rollouts_000001.js"]
    text = parts(run, found.entries[2])[0]["prompts"][0]["answers"][0]["text"]
    assert text == "another"
    (run / "report" / "rollouts_000001.js").unlink()  # somebody has tidied up
    write_chunks(run)
    assert (run / "report" / "rollouts_000001.js").exists()


def test_a_part_ends_behind_a_prompt_or_within_one_that_is_too_long(made: Path) -> None:
    rows = list(open_run(made).rows_as(step_name(1), VIEWED_ROWS))
    whole = len(b"".join(PartWriter({"name": "x"}).parts(rows)))
    writer = PartWriter({"name": "x"}, limit=whole // 4)
    found = [content(part) for part in writer.parts(rows)]
    assert [part["part"] for part in found] == list(range(len(found)))
    groups = [[prompt["group"] for prompt in part["prompts"]] for part in found]
    assert [group for part in groups for group in part] == [0, 1, 2, 3, 4]
    assert 3 <= len(found) <= 5
    tiny = [content(part) for part in PartWriter({"name": "x"}, limit=10).parts(rows)]
    assert [prompt["group"] for part in tiny for prompt in part["prompts"]] == [row.group for row in rows]
    indices = [answer["index"] for part in tiny for one in part["prompts"] for answer in one["answers"]]
    assert indices == [row.index for row in rows]


def test_a_small_run_is_within_the_page_with_the_tokens_that_it_uses(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = write_chunks(made).inside
    kinds = [script.partition("(")[0] for script in inside]
    assert kinds == ["rsRollouts.prompts", *["rsRollouts.add"] * 6, "rsRollouts.tokens"]
    tokens = content(inside[-1].encode())
    texts = dict(zip(tokens["ids"], tokens["texts"], strict=True))
    for prompt in content(inside[2].encode())["prompts"]:
        assert "".join(map(texts.__getitem__, prompt["ids"])) == prompt["text"]
    monkeypatch.setattr(chunks, "INSIDE_BYTES", 1000)
    assert write_chunks(made).inside == []


def test_a_damaged_file_of_the_ledger_is_named_and_the_others_are_there(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    path = run / "rollouts" / "step_000002.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"index":3', b'"index":4', 1))
    found = write_chunks(run)
    problems = [entry.problem for entry in found.entries]
    assert [bool(problem) for problem in problems] == [False, False, True, False, False, False]
    assert f"{path}:4" in problems[2]
    assert not (run / "report" / "rollouts_000002.js").exists()
    assert json.loads(found.index)["entries"][2]["problem"] == problems[2]


def test_an_index_that_cannot_be_read_is_made_anew(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    expected = write_chunks(run).entries
    (run / "report" / "index.json").write_text("{")
    assert write_chunks(run).entries == expected


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(NotARun):
        write_chunks(tmp_path)
    assert list(tmp_path.iterdir()) == []


# What tokens read as


TEXT = "Lily found a naïve 東京 😀 thing.\n\nShe  smiled."


def test_the_tokens_of_byte_level_tokenizers_spell_what_they_stand_for(tmp_path: Path) -> None:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "Ġf"])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("Ġ", "f")]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>"])
    made.add_tokens(["<think>", "   "])
    made.save(str(tmp_path / "tokenizer.json"))
    found = check_spelling(tmp_path, f"<|im_start|><think>{TEXT}   ")
    assert [found.texts[number] for number in found.control] == ["<|im_start|>", "<think>"]  # spaces are none


def test_the_tokens_of_sentencepiece_tokenizers_spell_what_they_stand_for(test_data: Path) -> None:
    found = check_spelling(test_data / "stories260k", TEXT)
    assert [found.texts[number] for number in found.control] == ["<unk>", "<s>", "</s>"]


def check_spelling(folder: Path, text: str) -> TokenTexts:
    texts = read_token_texts(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = [texts.texts[number] for number in ids]
    spelled = b"".join(bytes(one) if isinstance(one, list) else str(one).encode() for one in pieces).decode()
    assert spelled.removeprefix(" ") == text
    assert any(isinstance(one, list) for one in pieces)  # a part of a letter
    assert texts.only(set(ids)).texts == [texts.texts[number] for number in sorted(set(ids))]
    return texts


def test_the_tokenizer_is_the_newest_that_the_run_has_or_its_models(tmp_path: Path) -> None:
    model, config = (
        tmp_path / "model",
        {"pretrained_checkpoint": {"restore_from_path": str(tmp_path / "model")}},
    )
    assert find_tokenizer(tmp_path, config) is None
    folders = [
        *(model, tmp_path / "checkpoints/step_000002/huggingface"),
        *(tmp_path / "checkpoints/step_000010/huggingface", tmp_path / "final"),
    ]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text("{}")
        assert find_tokenizer(tmp_path, config) == folder / "tokenizer.json"
    with pytest.raises(ValueError, match="is no tokenizer that can be read"):
        read_token_texts(model / "tokenizer.json")


def test_what_a_page_embeds_says_which_files_there_are(made: Path) -> None:
    found: Chunks = write_chunks(made)
    index = json.loads(found.index)
    assert index["folder"] == "report"
    assert [entry["files"] for entry in index["entries"]] == [entry.files for entry in found.entries]
    assert "places" not in index["entries"][0]
    for name in ("viewer_data.js", "viewer_tokens.js", "viewer_parts.js", "viewer.js"):
        assert (Path(chunks.__file__).parent / "assets" / name).read_text() in found.script
    assert "</script" not in found.script
    assert "</style" not in found.style
