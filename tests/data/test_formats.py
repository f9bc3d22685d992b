"""Files of rows that are broken, cut or something else are told of, with the line where there is one."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from rs_aligner.config.base import data_problems
from rs_aligner.data import formats
from rs_aligner.data.rows import read_rows

pytestmark = pytest.mark.timeout(60)
LIST = json.dumps([{"text": "a"}, {"text": "b"}]).encode()
ZSTD: bytes = pyarrow.compress(LIST, "zstd", asbytes=True)


def packed(content: bytes) -> bytes:
    """Without the time, since it would be in a test's name, and each worker has its own."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b'[{"text": "a"},\n {"text": }]', "x.json", "x.json:2: not valid JSON (Expecting value"),
        (
            b'[{"text": "a"}\n {"text": "b"}]',
            "x.json",
            "x.json:2: not valid JSON (the list that begins in li",
        ),
        (b'[{"text": "a"},\n\n 7]', "x.json", "x.json:3: should be an object"),
        (
            b'[{"text": "a"}]\n{"text": "b"}',
            "x.json",
            "x.json:1: is a list, and more stands behind it in line",
        ),
        (b'[{"text": "a"}', "x.json", "x.json:1: not valid JSON (the list"),
        (b'{\n "text": "a",\n "n": ]\n}', "x.json", "x.json:1: not valid JSON (Expecting value in line 3)"),
        (
            b'{"text": "a"}\n{"text": "b"\n{"text": "c"}',
            "x.jsonl",
            "x.jsonl:2: not valid JSON (Expecting ',' del",
        ),
        (b'{\n "text": "\xff"\n}', "x.json", "x.json:2: not valid UTF-8 text"),
        (b'[{"text": "\\ud800"}]', "x.json", "x.json:1: not valid UTF-8 text"),
        (b'[{"text": NaN}]', "x.json", "x.json:1: not valid JSON (NaN is not JSON)"),
        (b"[" * 100_000, "x.json", "x.json:1: not valid JSON"),
        ('{"text": "a"}'.encode("utf-16"), "x.jsonl", "x.jsonl: is UTF-16 text; make it UTF-8: iconv"),
        (
            b"text,n\na,1\n",
            "x.csv",
            'pandas.read_csv(...).to_json("rows.jsonl", orient="records", lines=True)',
        ),
        (packed(LIST)[:-9], "x.json.gz", "x.json.gz: not a whole gzip file"),
        (packed(packed(LIST)), "x.gz", "x.gz: is packed twice"),
        (ZSTD[:-4], "x.zst", "x.zst: not a whole zstd file"),
        (b"PAR1 and no more", "x.parquet", "x.parquet: not a parquet file"),
        (b"ARROW1 and no more", "x.arrow", "x.arrow: not an Arrow file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(
    content: bytes, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(ValueError) as found:  # noqa: PT011 (the text is looked at)
        list(read_rows([name]))
    assert said in str(found.value)


@pytest.mark.parametrize("content", [LIST, packed(LIST), packed(LIST[:9]) + packed(LIST[9:])])
def test_rows_on_one_line_have_places_of_their_own(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "named_anyhow"
    path.write_bytes(content)
    assert list(read_rows([str(path)])) == [(f"{path}:1", {"text": "a"}), (f"{path}:1#2", {"text": "b"})]


def test_a_file_is_read_piece_by_piece_wherever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f'"{"ä" * n}\\\n', "n": -n, "more": [n, {"x": None}]} for n in range(40)]
    path = tmp_path / "rows.json"
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr("rs_aligner.data.formats._PIECE", size)
        for text in (json.dumps(rows, indent=1), "\n".join(json.dumps(row, indent=3) for row in rows)):
            path.write_text(text)
            assert [row for _, row in read_rows([str(path)])] == rows


def test_lines_are_read_as_the_careful_reader_reads_them() -> None:
    """What the quick reader takes, the other one takes as the same value; it takes nothing else."""
    draw = random.Random(0)
    line = b'{"id": "p0", "t": "\\u00e9\\ud83d\\ude00 \\n", "n": [1, -0, 2.5e3, null, {"a": "\xc3\xa9"}]}'
    odd = b'-0.0 1e400 0.1e-7 123456789012345678901234567890 NaN 01 1. "\\ud800" "\t" "\xff" {"a":1,"a":2}'
    lines = [line, *odd.split(b" ")]
    for _ in range(20_000):
        made = bytearray(line)
        for _ in range(draw.randint(1, 3)):
            made[draw.randrange(len(made))] = draw.choice([draw.randrange(256), *b'"\\{}[],:u0e-. '])
        lines.append(bytes(made))
    lines += [repr(draw.gauss(0, 1) * 10 ** draw.randint(-300, 300)).encode() for _ in range(2_000)]
    taken = 0
    for one in lines:
        try:
            quick = formats._QUICK.decode(one)
        except ValueError:
            continue
        taken += 1
        careful = formats._DECODER.decode(one.decode("utf-8"))
        assert repr(quick) == repr(careful)  # the order of keys and the sign of nothing, too
        formats.check_letters(careful, one)
    assert 2_000 < taken < len(lines)


class CountedText(str):
    """A text that counts the letters of what is cut from it."""

    cut = 0

    def __getitem__(self, key: Any) -> str:
        found = super().__getitem__(key)
        CountedText.cut += len(found)
        return found

    def lstrip(self, letters: str | None = None) -> str:
        found = super().lstrip(letters)
        CountedText.cut += len(found)
        return found


class CountedWindow(formats._Window):
    """A window whose text counts."""

    @property
    def _text(self) -> str:
        return self._held

    @_text.setter
    def _text(self, value: str) -> None:
        self._held = CountedText(value)


def test_reading_a_list_copies_its_text_a_few_times_however_many_values_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_Window", CountedWindow)
    path = tmp_path / "rows.json"
    for number in (500, 5000):
        path.write_text(json.dumps([{"text": "abc"}] * number, indent=1))
        CountedText.cut = 0
        assert len(list(read_rows([str(path)]))) == number
        assert CountedText.cut < 3 * path.stat().st_size


def test_the_first_rows_of_a_file_come_before_the_rest_is_read(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"text": "a"}\n{"text"'), ("b.json", '[{"text": "a"},\n{"text"')):
        (tmp_path / name).write_text(text)
        assert next(read_rows([str(tmp_path / name)]))[1] == {"text": "a"}


def test_a_folder_of_several_splits_is_refused_with_one_that_works(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="it comes with requirements/cpu.txt")
    one = datasets.Dataset.from_list([{"text": "a"}])
    folder = tmp_path / "both"
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(folder)
    (problem,) = data_problems("model.data.data_prefix.train", [str(folder)])
    assert "a DatasetDict with the splits 'train', 'test'; name one of them, e.g." in problem
    with pytest.raises(ValueError, match="splits 'train', 'test'"):
        list(read_rows([str(folder)]))
    named = str(folder / "train")
    assert named in problem
    assert not list(data_problems("key", [named]))
    assert list(read_rows([named])) == [(f"{named}:1", {"text": "a"})]
    next(iter((folder / "test").glob("*.arrow"))).unlink()
    (problem,) = data_problems("key", [str(folder / "test")])
    assert "lacks data-00000-of-00001.arrow" in problem
    (problem,) = data_problems("key", ["0.3", named])
    assert "weights and files take turns in data_prefix.train, as in [0.3, a.jsonl, 0.7, b.jsonl]" in problem
    (problem,) = data_problems("key", [str(tmp_path)])
    assert "is a folder; name JSON Lines" in problem
