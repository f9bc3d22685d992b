"""Files and their checksums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rs_aligner.files import checksum, checksums_of_files, put, running_checksum, write_whole


def test_a_checksum_is_xxh3_with_the_published_value_of_nothing():
    assert checksum(b"") == "2d06800538d394c2"


def test_a_flipped_bit_changes_a_checksum():
    content = bytearray(b"a line of a ledger\n")
    before = checksum(memoryview(content))
    content[3] ^= 1 << 5
    assert checksum(memoryview(content)) != before


def test_files_are_summed_as_their_bytes_are(tmp_path: Path):
    contents = [b"", b"short", bytes(range(256)) * 40_000]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert checksums_of_files(paths) == [checksum(content) for content in contents]
    growing = running_checksum()
    for start in range(0, len(contents[-1]), 12_345):
        growing.update(contents[-1][start : start + 12_345])
    assert growing.hexdigest() == checksum(contents[-1])


def test_a_file_that_cannot_be_written_whole_stays_as_it_was_and_no_half_of_it_is_left(tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text("old")

    def lines() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("no such template")

    with pytest.raises(ValueError, match="no such template"):
        write_whole(path, lines())
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("report.html", "old")]


def test_a_file_that_cannot_take_its_name_is_not_left_beside_it(tmp_path: Path):
    path = tmp_path / "report.html"
    path.mkdir()  # no file can be put in its place
    for write in (lambda: write_whole(path, [b"new"]), lambda: put(path, b"new")):
        with pytest.raises(IsADirectoryError):
            write()
        assert list(tmp_path.iterdir()) == [path]
