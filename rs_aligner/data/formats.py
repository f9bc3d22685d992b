"""Files of rows, told by what they hold and not by what they are called.

JSON Lines; JSON objects over several lines, as `jq` and `json.dump(indent=...)` write them; one list of rows;
each of these in gzip or zstd too; parquet, Arrow and folders of `datasets` (`arrow.py`). A mark of UTF-8 at
the front and line ends of Windows are passed over. Files are read as they are asked for: what is held of one
is a row, and a piece of what follows. Left out on purpose: CSV, whose columns have no types.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec

from rs_aligner.data.arrow import ARROW_FILE, ARROW_STREAM, PARQUET, arrow_rows, folder_rows

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PIECE = 1 << 16  # bytes read at once, where lines do not tell where a row ends
_CUT = 12  # letters that may be the beginning of a word of JSON


_QUICK = msgspec.json.Decoder()
"""Ten times as fast, and the same values; what it does not take, the other one takes, or says why not."""
_SPACE = re.compile(r"[ \t\r\n]*")


class _Bytes(Protocol):
    """What is asked of an opened file."""

    def __iter__(self) -> Iterator[bytes]: ...

    def read(self, size: int, /) -> bytes: ...


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def values_in(name: str) -> Iterator[tuple[str, Any]]:
    """Each value of a file with its place: `file:line`, of parquet and the like `file:row`.

    Of several that begin on one line, the second is at `file:line#2`. Empty lines are skipped, but counted.

    Raises:
        ValueError: the file cannot be read, with the line.
    """
    if Path(name).is_dir():
        yield from folder_rows(name)
        return
    with open(name, "rb") as file:
        begin = file.peek(len(ARROW_FILE))
        magic = next((one for one in (PARQUET, ARROW_FILE, ARROW_STREAM) if begin.startswith(one)), None)
        if magic is None and name.endswith(".parquet"):
            magic = PARQUET
        if magic is None:
            with _unpacked(name, file, begin) as unpacked:
                yield from _text_values(name, unpacked)
            return
    yield from arrow_rows(name, magic)


@contextlib.contextmanager
def _unpacked(name: str, file: io.BufferedReader, begin: bytes) -> Iterator[_Bytes]:
    if begin.startswith(_GZIP):
        try:
            with gzip.open(file) as unpacked:
                yield unpacked
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{name}: not a whole gzip file ({error})") from None
    elif begin.startswith(_ZSTD):
        import pyarrow

        try:
            with pyarrow.CompressedInputStream(file, "zstd") as unpacked:
                yield io.BufferedReader(unpacked)
        except OSError as error:
            raise ValueError(f"{name}: not a whole zstd file ({error})") from None
    else:
        yield file


def _text_values(name: str, file: _Bytes) -> Iterator[tuple[str, Any]]:
    """A value a line, until one goes on in the next line or is a list: then wherever lines break."""
    is_first = True
    for number, read in enumerate(file, start=1):
        line = read.removeprefix(codecs.BOM_UTF8) if number == 1 else read
        if number == 1:
            _refuse_others(name, line)
        stripped = line.strip()
        if not stripped:
            continue
        if is_first and stripped.startswith(b"["):
            yield from _Window(name, file, line, number).values()
            return
        is_first = False
        where = f"{name}:{number}"
        try:
            yield where, _QUICK.decode(stripped)
            continue
        except (ValueError, RecursionError):  # no value, or one that only the other reader takes
            pass
        try:
            value = _DECODER.decode(stripped.decode("utf-8"))
            check_letters(value, stripped)
        except json.JSONDecodeError as error:
            if error.pos >= len(error.doc):  # it goes on in the next line
                yield from _Window(name, file, line, number).values()
                return
            raise ValueError(f"{where}: not valid JSON ({error}){_advice(name)}") from None
        except UnicodeError as error:
            raise ValueError(f"{where}: not valid UTF-8 text ({_reason(error)})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from None
        yield where, value


def check_letters(value: Any, written: bytes) -> None:
    r"""See that a value is of letters: a lone surrogate, `\ud800`, passes as JSON and is no text.

    Raises:
        UnicodeEncodeError: it is not; neither tokenizer nor judge would take it.
    """
    if b"\\u" in written:  # no other way leads to one
        json.dumps(value, ensure_ascii=False).encode("utf-8")


class _Window:
    """A piece of a file's text, which moves along with what is read.

    Args:
        name: of the file.
        file: what follows.
        begun: what was read of it already, the last.
        line: the line at which that begins, counted from 1.
    """

    def __init__(self, name: str, file: _Bytes, begun: bytes, line: int) -> None:
        self._name, self._file, self._line = name, file, line
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._place, self._is_all = "", 0, False
        self._last, self._on_line = 0, 0
        self._add(begun)

    def values(self) -> Iterator[tuple[str, Any]]:
        """Each value with its place; those of a list, where the file is one.

        Raises:
            ValueError: what stands there is no JSON, with the line.
        """
        if self._next() != "[":
            while self._next():
                yield self._where(), self._value()
            return
        first, begun = self._line, self._where()
        self._skip()
        if self._next() == "]":
            self._skip()
        else:
            self._last = 0  # the list itself is no row of its line
            yield self._where(), self._value()
            while self._next() == ",":
                self._skip()
                self._next()
                yield self._where(), self._value()
            if self._next() != "]":
                raise ValueError(
                    f"{self._at()}: not valid JSON (the list that begins in line {first} should go on with "
                    "a comma, or end)"
                )
            self._skip()
        if self._next():
            raise ValueError(
                f"{begun}: is a list, and more stands behind it in line {self._line}; a row should be an "
                'object such as {"text": ...}, a file one list of them or one a line'
            )

    def _next(self) -> str:
        """The next letter that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            assert space is not None  # there may be none of it
            self._line += self._text.count("\n", self._place, space.end())
            self._place = space.end()
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def _skip(self) -> None:
        self._place += 1

    def _value(self) -> Any:
        where = self._at()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
                check_letters(value, self._text[self._place : end].encode("utf-8", "surrogatepass"))
                break
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT
                if is_cut and self._more():
                    continue
                line = self._line + self._text.count("\n", self._place, error.pos)
                at = f" in line {line}" if line != self._line else ""
                raise ValueError(f"{where}: not valid JSON ({error.msg}{at}){_advice(self._name)}") from None
            except UnicodeError as error:
                raise ValueError(f"{where}: not valid UTF-8 text ({_reason(error)})") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not valid JSON ({error})") from None
        self._line += self._text.count("\n", self._place, end)
        self._place = end
        return value

    def _at(self) -> str:
        return f"{self._name}:{self._line}"

    def _where(self) -> str:
        """The place of the value that begins here, which no other has."""
        self._on_line = self._on_line + 1 if self._line == self._last else 1
        self._last = self._line
        return self._at() if self._on_line == 1 else f"{self._at()}#{self._on_line}"

    def _more(self) -> bool:
        """Read on; says whether there was anything."""
        if self._is_all:
            return False
        self._text, self._place = self._text[self._place :], 0  # once a piece, not once a value
        piece = self._file.read(max(_PIECE, len(self._text)))
        self._add(piece)
        return bool(piece)

    def _add(self, piece: bytes) -> None:
        self._is_all = not piece
        try:
            self._text += self._decoder.decode(piece, final=self._is_all)
        except UnicodeDecodeError as error:
            line = (
                self._line + self._text.count("\n", self._place) + error.object.count(b"\n", 0, error.start)
            )
            raise ValueError(f"{self._name}:{line}: not valid UTF-8 text ({error.reason})") from None


def _refuse_others(name: str, line: bytes) -> None:
    """Refuse what is no text of UTF-8, by what it begins with."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{name}: is UTF-16 text; make it UTF-8: iconv -f UTF-16 -t UTF-8 {name}")
    if line.startswith((PARQUET, _GZIP, _ZSTD)):
        raise ValueError(f"{name}: is packed twice; unpack it once")


def _advice(name: str) -> str:
    if not name.endswith((".csv", ".tsv")):
        return ""
    return (
        "; of a table write a row a line, with pandas: "
        'pandas.read_csv(...).to_json("rows.jsonl", orient="records", lines=True)'
    )


def _reason(error: UnicodeError) -> str:
    return str(getattr(error, "reason", error))
