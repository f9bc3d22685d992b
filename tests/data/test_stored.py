"""Prompts of large files: read once a node, and what comes back is what the plain reader reads."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands import attempt
from rs_aligner.commands.build import read_tokenizer
from rs_aligner.commands.machine import fit_of_rs
from rs_aligner.commands.run_data import read_rs_data
from rs_aligner.config import TrainRSConfig
from rs_aligner.data import (
    DataOrder,
    PromptSet,
    held_apart,
    kept,
    load_pairs,
    load_prompts,
    load_sft_rows,
    store,
    tell_duplicates,
)
from rs_aligner.data.stored import Stored, StoredPrompts, only, spans_of, sums_of
from rs_aligner.data.sums import PairSums, PromptSums, RowSums
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.rollout import PreferencePair, Prompt, TrainingRow
from tests.conftest import ROOT
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)
ROWS: list[Any] = [
    {"text": "Once upon a time"},
    {"text": "a cat", "id": "own"},
    {"id": 7, "text": "A  CAT", "answer": 1 << 80, "x": [1.5, -0.0, None, True, {"ä": "ö\u2028"}]},
    {"prompt": "TRL's", "completion": "an answer"},
    "a text for a row",
    {"text": "a word " * 60},
    {"text": "a cat"},
    {"text": "the last one", "nested": {"prefilled": [[]]}},
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("stored") / "policy")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of its own, and every file is a large one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(kept, "LARGE", 1)
    return tmp_path / "tmp" / f"rs_aligner_data_{os.geteuid()}"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    (tmp_path / "b.json").write_text(json.dumps(ROWS[5:]))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")]


def read(files: list[str], policy: Path, **how: Any) -> PromptSet:
    return load_prompts(files, Tokenizer(policy), **{"max_prompt_length": 40, **how})


def in_memory(files: list[str], policy: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> PromptSet:
    with monkeypatch.context() as patch:
        patch.setattr(kept, "LARGE", 1 << 60)
        return read(files, policy, **how)


@pytest.fixture
def makings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where stores were made, in order."""
    made: list[Path] = []
    write = kept.write_items

    def noted(folder: Path, *arguments: Any) -> None:
        made.append(folder)
        write(folder, *arguments)

    monkeypatch.setattr(kept, "write_items", noted)
    return made


@pytest.mark.parametrize(
    "how", [{}, {"template": "Q: {text}", "columns": {"text": "text"}}, {"add_bos": False}]
)
def test_what_comes_back_is_what_the_plain_reader_reads(
    how: dict[str, Any], files: list[str], policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "template" in how:
        files = files[1:]
    plain = in_memory(files, policy, monkeypatch, **how)
    assert isinstance(plain.prompts, tuple)
    for _ in ("made", "mapped"):
        found = read(files, policy, **how)
        assert isinstance(found.prompts, StoredPrompts)
        assert repr(tuple(found.prompts)) == repr(plain.prompts)  # types, signs and the order of keys, too
        assert found.num_too_long == plain.num_too_long == 1
        assert list(found.origins.where) == list(plain.origins.where)
        assert list(found.origins.exact) == list(plain.origins.exact)
        assert list(found.origins.alike) == list(plain.origins.alike)
        assert list(found.origins.files) == list(plain.origins.files)
        assert found.origins.repeated() == plain.origins.repeated()
        assert sums_of(PromptSums, found.prompts) == sums_of(PromptSums, plain.prompts)
        assert spans_of(found.prompts) == spans_of(plain.prompts)


ANSWERED: list[Any] = [
    {"prompt": "2+2?", "response": "4", "chosen": "4", "rejected": "5"},
    {"prompt": "2+2 ?", "response": "4", "chosen": "4", "rejected": "four"},
    {"prompt": "too long", "response": "a word " * 60, "chosen": "a word " * 60, "rejected": "5"},
    {"prompt": "A tie", "response": "it is cut", "chosen": "1", "rejected": "1", "finish_reason": "length"},
    {"prompt": "2+2?", "response": "4", "chosen": "4", "rejected": "5"},
    {
        "prompt": "the last",
        "response": "of them is the longest one",
        "chosen": "one",
        "rejected": "the other",
    },
]


@pytest.mark.parametrize(
    ("load", "items", "sums"), [(load_sft_rows, "rows", RowSums), (load_pairs, "pairs", PairSums)]
)
def test_rows_and_pairs_come_back_as_the_plain_reader_reads_them(
    load: Any,
    items: str,
    sums: Any,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ANSWERED))
    told = []

    def read() -> Any:
        caplog.clear()
        found = load([str(tmp_path / "a.jsonl")], Tokenizer(policy), max_length=60, max_prompt_length=50)
        tell_duplicates(["a"], items, found.origins)
        told.append([line for line in caplog.messages if "this node" not in line and "before" not in line])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(kept, "LARGE", 1 << 60)
        plain = read()
    expected = getattr(plain, items)
    for _ in ("made", "mapped"):
        found = read()
        rows = getattr(found, items)
        assert isinstance(rows, Stored)
        assert repr(tuple(rows)) == repr(expected)
        assert tuple(only(rows, [3, 0])) == (expected[3], expected[0])
        for one, other in ((rows, expected), (only(rows, [3, 0]), only(expected, [3, 0]))):
            assert sums_of(sums, one) == sums_of(sums, other)
            assert spans_of(one) == spans_of(other)
        assert found.num_too_long == plain.num_too_long == 1
        assert found.origins.repeated() == plain.origins.repeated() == (1, (0, 3 if items == "rows" else 2))
        for name in ("where", "exact", "alike", "files"):
            assert list(getattr(found.origins, name)) == list(getattr(plain.origins, name))
    assert told[0] == told[1] == told[2] != []
    assert getattr(found, "num_ties", 1) == 1


def test_some_of_them_are_those_of_the_plain_reader(
    files: list[str], policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, found = in_memory(files, policy, monkeypatch).prompts, read(files, policy).prompts
    assert len(found) == len(plain) == 7
    assert found[-1] == plain[-1]
    assert tuple(found[1:6:2]) == plain[1:6:2]
    some = only(found, [4, 1])
    assert list(some) == [plain[4], plain[1]]
    assert sums_of(PromptSums, some) == sums_of(PromptSums, [plain[4], plain[1]])
    assert spans_of(some) == spans_of([plain[4], plain[1]])
    with pytest.raises(IndexError):
        found[7]
    order = next(DataOrder(7, 7, seed=1))
    assert [found[draw.index] for draw in order] == [plain[draw.index] for draw in order]


def test_what_is_held_out_and_what_comes_twice_is_told_alike(
    files: list[str],
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "held_out.jsonl").write_text('{"text": "nothing"}\n{"text": "a CAT"}\n')
    said = []
    for reader in (lambda names: in_memory(names, policy, monkeypatch), lambda names: read(names, policy)):
        caplog.clear()
        train, held_out = reader(files), reader([str(tmp_path / "held_out.jsonl")])
        caplog.set_level(logging.WARNING, "rs_aligner")
        left = held_apart("key", train.origins, held_out.origins, "drop")
        tell_duplicates(files, "prompts", train.origins)
        said.append((list(left), caplog.messages))
    assert said[0] == said[1]
    assert said[0][0] == [0, 3, 4, 6]
    assert len(said[0][1]) == 3  # what was left out as too long, too


def test_a_second_start_reads_nothing_again_and_tells_the_same(
    files: list[str], policy: Path, home: Path, makings: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rs_aligner")
    told = []
    for _ in range(2):
        caplog.clear()
        read(files, policy)
        told.append(caplog.messages)
    (folder,) = home.glob("*/")
    assert len(makings) == 1
    assert f"data: 7 prompts, read once for all ranks of this node: {folder}" in "".join(told[0])
    assert f"data: 7 prompts, read before: {folder}" in "".join(told[1])
    warned = [[line for line in lines if not line.startswith("data: 7 prompts")] for lines in told]
    assert warned[0] == warned[1] != []
    assert (home.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o700, 0o700)


def test_whatever_decides_what_is_read_makes_another_store(
    files: list[str], policy: Path, tmp_path: Path, makings: list[Path]
) -> None:
    read(files, policy)
    other = tmp_path / "policy"
    shutil.copytree(policy, other)
    read(files, other)  # the same files in another folder
    assert len(makings) == 1
    read(files, policy, max_prompt_length=41)
    read(files[::-1], policy)
    read(files, policy, add_bos=False)
    named = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**named, "extra": 1}))
    read(files, other)
    assert len(makings) == 5
    with Path(files[0]).open("a") as file:
        file.write('{"text": "one more"}\n')
    assert len(read(files, policy).prompts) == 8
    assert len(makings) == 6


def test_a_template_that_has_the_day_in_it_is_read_anew_each_time(
    files: list[str], policy: Path, tmp_path: Path, makings: list[Path]
) -> None:
    other = tmp_path / "policy"
    shutil.copytree(policy, other)
    (other / "chat_template.jinja").write_text("{{ strftime_now('%d') }}{{ messages[0]['content'] }}")
    assert isinstance(read(files, other).prompts, tuple)
    assert makings == []


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "lost"])
def test_a_damaged_store_is_made_again(
    damage: str, files: list[str], policy: Path, home: Path, makings: list[Path], monkeypatch: Any
) -> None:
    plain = in_memory(files, policy, monkeypatch).prompts
    read(files, policy)
    (folder,) = home.glob("*/")
    path = folder / ("store.json" if damage == "record" else "tokens")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(content[:-4] if damage == "cut" else content)
    assert tuple(read(files, policy).prompts) == plain
    assert len(makings) == 2
    read(files, policy)
    assert len(makings) == 2


def test_what_a_killed_process_left_half_is_made_anew(files: list[str], policy: Path, home: Path) -> None:
    code = (
        "import os, sys, tempfile, rs_aligner.data.kept as k, rs_aligner.data.storing as s\n"
        "from rs_aligner.data import load_prompts\n"
        "from pathlib import Path\n"
        "from rs_aligner.model.tokenizer import Tokenizer\n"
        "tempfile.tempdir, k.LARGE = sys.argv[1], 1\n"
        "s.Writer.finish = lambda *_: os.kill(os.getpid(), 9)\n"
        "load_prompts(sys.argv[3:], Tokenizer(Path(sys.argv[2])), max_prompt_length=40)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(home.parent), str(policy), *files], check=False, cwd=ROOT
    )
    assert done.returncode == -9
    assert [path.suffix for path in home.glob("*/")] == [".new"]
    assert len(read(files, policy).prompts) == 7
    assert [path.suffix for path in home.glob("*/")] == [""]


def _read_as_rank(rank: int, gate: Any, files: list[str], policy: Path, folder: Path) -> None:
    tempfile.tempdir, kept.LARGE = str(folder), 1
    write = kept.write_items

    def noted(*arguments: Any) -> None:
        (folder / f"made_by_{rank}").touch()
        time.sleep(0.3)  # the others are at the door by now
        write(*arguments)

    kept.write_items = noted  # type: ignore[assignment]  # notes who writes
    tokenizer = Tokenizer(policy)
    gate.wait(60)
    found = load_prompts(files, tokenizer, max_prompt_length=40)
    (folder / f"read_by_{rank}").write_text(repr(list(found.prompts)))


def test_of_several_ranks_one_reads_and_all_have_the_same(
    files: list[str], policy: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    folder = tmp_path / "tmp"
    ranks = [
        context.Process(target=_read_as_rank, args=(rank, gate, files, policy, folder)) for rank in range(3)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(60)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert len(list(folder.glob("made_by_*"))) == 1
    assert len({(folder / f"read_by_{rank}").read_text() for rank in range(3)}) == 1


def test_a_row_that_cannot_be_used_leaves_nothing_behind(files: list[str], policy: Path, home: Path) -> None:
    with Path(files[0]).open("a") as file:
        file.write('{"what": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:6: has neither 'text' nor 'messages'"):
        read(files, policy)
    with pytest.raises(ValueError, match="no prompts to use"):
        read(files[1:], policy, max_prompt_length=1)
    assert list(home.glob("*/")) == []


@pytest.mark.parametrize("what", ["another's", "full", "changed"])
def test_where_nothing_can_be_kept_each_rank_reads_as_before(
    what: str,
    files: list[str],
    policy: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = in_memory(files, policy, monkeypatch)
    if what == "another's":
        home.symlink_to(home.parent)
    elif what == "full":

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store.Writer, "finish", full)
    else:
        keys = iter("abcdefgh")
        monkeypatch.setattr(kept, "key_of", lambda *_: next(keys))
    found = read(files, policy)
    assert found == plain
    assert isinstance(found.prompts, tuple)
    reason = {
        "another's": "is not this user's",
        "full": "No space left",
        "changed": "changed while they were",
    }
    assert "data: prompts are kept in memory, by each rank: " in caplog.text
    assert reason[what] in caplog.text
    assert not [path for path in home.glob("*/") if not path.is_symlink()] or what == "another's"


def test_a_folder_that_others_may_read_is_closed(files: list[str], policy: Path, home: Path) -> None:
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    read(files, policy)
    assert home.stat().st_mode & 0o777 == 0o700


def test_old_stores_go_and_those_at_work_stay(files: list[str], policy: Path, home: Path) -> None:
    first = read(files, policy).prompts
    (old,) = home.glob("*/")
    long_ago = time.time() - 15 * 24 * 3600
    os.utime(old / "store.json", (long_ago, long_ago))
    read(files, policy, max_prompt_length=41)
    assert old not in set(home.glob("*/"))
    assert first[0].text == ROWS[0]["text"]  # who has it mapped keeps it
    half = home / ("f" * 32 + ".new")
    half.mkdir()  # of a process that was killed
    for longest in range(50, 70):
        read(files, policy, max_prompt_length=longest)
    assert len(list(home.glob("*/"))) == 8
    assert not half.exists()
    assert len(list(home.glob("*.lock"))) <= 16


def test_small_files_are_read_as_before(
    files: list[str], policy: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(kept, "LARGE", 16 << 20)
    assert isinstance(read(files, policy).prompts, tuple)
    assert not home.exists()


def test_a_rank_holds_the_prompts_of_its_step_however_many_there_are(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a start allocates at most beyond the first, to the end of its fifth step, in bytes a row."""
    number, note = 4_000, "1234567 " * 40
    rows = (json.dumps({"id": f"p{place}", "text": "a b", "note": note}) for place in range(number))
    (tmp_path / "many.jsonl").write_text("\n".join(rows))
    tokenizer = Tokenizer(policy)

    def peak() -> int:
        tracemalloc.start()
        try:
            found = load_prompts([str(tmp_path / "many.jsonl")], tokenizer, max_prompt_length=40)
            sums_of(PromptSums, found.prompts), spans_of(found.prompts), found.origins.repeated()
            order = DataOrder(number, 64, seed=1)
            for _ in range(5):
                assert len([found.prompts[draw.index] for draw in next(order)]) == 64
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    monkeypatch.setattr("rs_aligner.files._PIECE", 1 << 12)
    load_prompts([str(tmp_path / "many.jsonl")], tokenizer, max_prompt_length=40)
    mapped = peak()
    assert mapped < number * 8 + (1 << 19)  # the order; and a step, and pieces of files
    monkeypatch.setattr(kept, "LARGE", 1 << 60)
    assert peak() > 5 * mapped


def test_a_training_reads_the_same_of_stored_prompts_with_weights_and_held_out_ones(
    files: list[str], policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "held_out.jsonl").write_text('{"text": "nothing"}\n{"text": "a CAT"}\n')
    config: Any = TrainRSConfig.model_validate(
        {
            "exp_manager": {"explicit_log_dir": str(tmp_path / "run")},
            "pretrained_checkpoint": {"restore_from_path": str(policy)},
            "model": {
                "data": {
                    "data_prefix": {
                        "train": [1, files[0], 3, files[1]],
                        "validation": str(tmp_path / "held_out.jsonl"),
                    },
                    "overlap": "drop",
                    "seq_length": 40,
                },
                "rs": {"length_params": {"max_length": 8}},
            },
        }
    )
    tokenizer, positions = read_tokenizer(config)
    stored = read_rs_data(config, tokenizer, positions)
    with monkeypatch.context() as patch:
        patch.setattr(kept, "LARGE", 1 << 60)
        plain = read_rs_data(config, tokenizer, positions)
    assert isinstance(stored.prompts, StoredPrompts)
    assert (tuple(stored.prompts), tuple(stored.validation)) == (plain.prompts, plain.validation)
    assert stored.shares == plain.shares
    assert [share.rows for share in plain.shares] == [3, 1]
    assert attempt.of_rs_data(config, stored) == attempt.of_rs_data(config, plain)
    assert fit_of_rs(config, stored, positions).lengths == fit_of_rs(config, plain, positions).lengths


def test_cycles_are_looked_for_as_often_as_before_once_all_is_read(
    files: list[str], policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = gc.get_threshold(), []
    monkeypatch.setattr(kept, "size_of", lambda _: seen.append(gc.get_threshold()[0]) or 0)
    read(files, policy)
    with pytest.raises(ValueError, match="no prompts to use"):
        read(files, policy, max_prompt_length=1)
    assert gc.get_threshold() == before
    assert seen == [100_000, 100_000]


def test_checksums_are_those_that_earlier_versions_noted_so_that_their_runs_go_on() -> None:
    row = {"z": 1.5, "a": "ä\u2028", "n": [None, True, 1 << 70]}
    some = [Prompt("f:1", 'a "ä"', (1, 70000, 3), metadata=row), Prompt("x", "b", (5,), metadata={})]
    assert sums_of(PromptSums, some) == {"fingerprint": "42b20bade743eb7e", "digest": 17784447715675}
    assert sums_of(PromptSums, []) == {"fingerprint": "2d06800538d394c2", "digest": 243927366461433}
    rows = [TrainingRow((1, 2), (3,), 0.25), TrainingRow((4,), (5, 6))]
    assert sums_of(RowSums, rows) == {"fingerprint": "8df122a73011b5b5"}
    assert sums_of(PairSums, [PreferencePair((1, 2), (1, 3, 4))]) == {"fingerprint": "8dd4c31520038a0e"}
