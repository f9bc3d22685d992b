"""Prompts into the columns of a store, from which `stored.py` makes them again; and what a store is called.

Each prompt is written as it is read, and what a start needs of all of them is summed up on the way. Left out
on purpose: reading rows (`prompts.py`), and files and locks (`store.py`).
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from rs_aligner import __version__
from rs_aligner.data.overlap import digests_of
from rs_aligner.data.store import Writer
from rs_aligner.data.sums import PromptSums
from rs_aligner.data_folder import data_files
from rs_aligner.files import checksums_of_files
from rs_aligner.rollout import Prompt

FORMAT = 1
"""Of the columns and records; another one is another store."""
_KINDS = {
    "tokens": "<i4",  # of all prompts, one behind the other
    "token_ends": "<i8",  # where those of each end
    "rows": "u1",  # id, place in the file, text and data row of each, as MessagePack
    "row_ends": "<i8",
    "files": "<u4",  # the number of its file
    "exact": "u1",  # digests, as `overlap.Origins` has them
    "alike": "u1",
}
_WRITTEN = 1024  # prompts that are written together
_pack = msgspec.msgpack.Encoder().encode


def size_of(files: Sequence[str]) -> int:
    """Bytes of files, and of the files of folders; 0 where one of them is not there."""
    try:
        return sum(path.stat().st_size for path in _paths(files))
    except OSError:
        return 0  # whoever reads it says so


def key_of(files: Sequence[str], how: Any) -> str:
    """What a store of these files is called: by their names, what they hold, and how they are read."""
    sums = list(zip(map(str, _paths(files)), checksums_of_files(_paths(files)), strict=True))
    text = json.dumps([FORMAT, __version__, msgspec.__version__, list(files), sums, how])
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _paths(files: Sequence[str]) -> list[Path]:
    paths = map(Path, files)
    return [part for path in paths for part in ([path] if not path.is_dir() else data_files(path))]


class Found(NamedTuple):
    """A prompt as it was read.

    Attributes:
        prompt: whose `position` is its place in the set.
        where: its `file:line`.
        file: the number of its file.
    """

    prompt: Prompt
    where: str
    file: int


def write_prompts(
    folder: Path, files: Sequence[str], found: Iterable[Found], told: Callable[[int], dict[str, Any]]
) -> None:
    """Write prompts into an empty folder of a store.

    Args:
        folder: of the store.
        files: by their names, of which a prompt has the number.
        found: the prompts in order.
        told: called with how many there were when all are read: what else to note, or why not to go on.
    """
    writer = Writer(folder, _KINDS)
    with contextlib.closing(writer):
        rows = _Rows(writer, files)
        for one in found:
            rows.add(*one)
        rows.flush()
        further = told(rows.number)
        fingerprint, digest = rows.sums.fingerprint, rows.sums.digest
        repeated = _repeated(writer.column("alike"))
        writer.finish(
            {
                **further,
                "files": list(files),
                "fingerprint": fingerprint,
                "digest": digest,
                "lengths": [rows.shortest, rows.longest],
                "repeated": repeated,
            }
        )


class _Rows:
    """Prompts on their way into columns, many at a time.

    Attributes:
        number: of prompts.
        shortest, longest: tokens of a prompt.
        sums: of all.
    """

    def __init__(self, writer: Writer, files: Sequence[str]) -> None:
        self._writer, self._names = writer, files
        self.sums, self.number = PromptSums(), 0
        self.shortest, self.longest = 1 << 62, 0
        self._num_tokens = self._num_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._tokens, self._files = array("i"), array("I")
        self._token_ends, self._row_ends = array("q"), array("q")
        self._rows: list[bytes] = []
        self._exact: list[bytes] = []
        self._alike: list[bytes] = []

    def add(self, prompt: Prompt, where: str, file: int) -> None:
        """Take the next prompt in."""
        row, size = _packed(prompt, where, self._names[file]), len(prompt.token_ids)
        self._tokens.extend(prompt.token_ids)
        self._num_tokens += size
        self._token_ends.append(self._num_tokens)
        self._rows.append(row)
        self._num_bytes += len(row)
        self._row_ends.append(self._num_bytes)
        self._files.append(file)
        exact, alike = digests_of(prompt.text)
        self._exact.append(exact)
        self._alike.append(alike)
        self.sums.add(prompt)
        self.number += 1
        self.shortest, self.longest = min(self.shortest, size), max(self.longest, size)
        if len(self._rows) == _WRITTEN:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        for name, numbers in (
            ("tokens", self._tokens),
            ("token_ends", self._token_ends),
            ("row_ends", self._row_ends),
            ("files", self._files),
        ):
            self._writer.add(name, numbers.tobytes())
        for name, parts in (("rows", self._rows), ("exact", self._exact), ("alike", self._alike)):
            self._writer.add(name, b"".join(parts))
        self._begin()


def _packed(prompt: Prompt, where: str, file: str) -> bytes:
    """What there is of a prompt besides its tokens; nothing twice."""
    assert where.startswith(file)
    own_id = None if prompt.id == where else prompt.id
    text = None if prompt.metadata.get("text") == prompt.text else prompt.text
    try:
        return _pack((own_id, where[len(file) :], text, prompt.metadata))
    except OverflowError:  # whole numbers of more than 64 bits
        return _pack((own_id, where[len(file) :], text, json.dumps(prompt.metadata)))


def _repeated(column: np.ndarray) -> list[Any]:
    """As `Origins.repeated`, by sorting: 40 MB for a million while it lasts."""
    halves = column.view("<u8").reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # of equal ones the first place comes first
    in_order = halves[order]
    is_again = np.concatenate(([False], (in_order[1:] == in_order[:-1]).all(axis=1)))
    if not is_again.any():
        return [0, [0, 0]]
    again = np.flatnonzero(is_again)
    first = again[np.argmin(order[again])]
    before = np.flatnonzero(~is_again[:first])[-1]
    return [len(again), [int(order[before]), int(order[first])]]
