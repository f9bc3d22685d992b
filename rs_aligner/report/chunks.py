"""The rollouts of a run beside its page: script files, of which the page reads those that somebody looks at.

    report/rollouts_000001.js     a step's rollouts; more parts are rollouts_000001_2.js and so on
    report/held_out_000010.js     the answers to held-out prompts behind step 10
    report/prompts.js             where each prompt's answers are, over all steps
    report/tokens.js              what the tokenizer's tokens read as
    report/index.json             what has been written, for the next report

A step that was written before is not read again: its file in the ledger tells by size, time and last checksum
whether it still is that file. A run that takes steps back, or makes one anew, thus leaves nothing old here.
The files of a small run are within the page, too, so that the page alone can be sent to somebody.

Left out on purpose: the open step, whose rollouts nobody has selected yet; and waiting for the disk, since
all of this can be made again from the ledger.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import msgspec
from markupsafe import Markup

from rs_aligner.files import checksum_of_file, make_folder, put
from rs_aligner.record.ledger import held_out_name, step_name
from rs_aligner.report.chunk_parts import PartWriter, Summary, in_script, script
from rs_aligner.report.run_data import RunData, open_run
from rs_aligner.report.token_texts import TokenTexts, find_tokenizer, read_token_texts
from rs_aligner.report.viewed_row import VIEWED_ROWS, ViewedRow

FOLDER = "report"
INSIDE_BYTES = 1_000_000
"""Rollouts of so many bytes are within the page."""

_FORMAT = 1  # of the files; another one makes all of them anew
_INDEX, _PROMPTS, _TOKENS = "index.json", "prompts.js", "tokens.js"
_OURS = re.compile(r"(rollouts|held_out)_\d{6,}(_\d+)?\.js")
_END_BYTES = 40  # of a file in the ledger: the last line's checksum
_ASSETS = ("viewer_data.js", "viewer_tokens.js", "viewer_parts.js", "viewer.js")

_encode = msgspec.json.encode


class Entry(msgspec.Struct):
    """A file of the ledger, as it is here.

    Attributes:
        step: of the file.
        is_held_out: whether these are answers to held-out prompts.
        key: tells the file from what it was before or will be.
        summary: of its rollouts.
        problem: why it cannot be shown; empty where it can.
    """

    step: int
    is_held_out: bool
    key: str
    summary: Summary = msgspec.field(default_factory=Summary)
    problem: str = ""

    @property
    def name(self) -> str:
        """What the files are called, but for the number of the part and the ending."""
        return f"{'held_out' if self.is_held_out else 'rollouts'}_{self.step:06d}"

    @property
    def files(self) -> list[str]:
        """The files of its parts."""
        return [_file(self.name, part) for part in range(len(self.summary.sizes))]


class _Written(msgspec.Struct):
    """What `index.json` says: the entries, and of which tokenizer the texts of tokens are (its checksum)."""

    entries: list[Entry]
    tokenizer: str = ""
    format: int = _FORMAT


@dataclass(frozen=True)
class Chunks:
    """What the page embeds so that its viewer finds a run's rollouts; `templates/rollouts.html` does it.

    Attributes:
        entries: of the ledger's files, in the order in which a run makes them.
        has_tokens: whether it is known what tokens read as.
        inside: scripts for the page itself; empty where the files beside it are to be read.
    """

    entries: list[Entry]
    has_tokens: bool
    inside: list[Markup] = field(default_factory=list)

    @property
    def num_rollouts(self) -> int:
        """All of them, of steps and held-out looks."""
        return sum(entry.summary.rollouts for entry in self.entries)

    @property
    def index(self) -> Markup:
        """The index as JSON for a `<script type="application/json">`."""
        entries = [
            {
                "name": entry.name,
                "key": entry.key,
                "step": entry.step,
                "heldOut": entry.is_held_out,
                "files": entry.files,
                "problem": entry.problem,
                **{
                    key: value for key, value in msgspec.to_builtins(entry.summary).items() if key != "places"
                },
            }
            for entry in self.entries
        ]
        index = {
            "folder": FOLDER,
            "entries": entries,
            "prompts": _PROMPTS,
            "tokens": _TOKENS if self.has_tokens else None,
            "inside": bool(self.inside),
        }
        return Markup(in_script(_encode(index)).decode())

    @property
    def script(self) -> Markup:
        """The viewer, for a `<script>`."""
        return Markup("\n".join(_asset(name) for name in _ASSETS))

    @property
    def style(self) -> Markup:
        """Its style sheet, for a `<style>`."""
        return Markup(_asset("viewer.css"))


def write_chunks(run: Path) -> Chunks:
    """Write the rollouts of a run where its page finds them, as far as they are missing there.

    Args:
        run: the folder of the run; nothing but its `report/` is written.

    Returns:
        What the page needs to know. A file of the ledger that is damaged is in it with the problem.

    Raises:
        NotARun: there is no run in the folder.
        ValueError: it is of a format that this version does not read.
        OSError: it cannot be written there.
    """
    data, folder = open_run(run), run / FOLDER
    make_folder(folder)
    before = _read_index(folder)
    entries = list(_entries(data, folder, before))
    tokens = _write_tokens(data, folder, before)
    _put(folder / _PROMPTS, script("prompts", _prompts(entries)))
    _put(folder / _INDEX, _encode(_Written(entries, tokens)))
    _clear(folder, entries)
    return Chunks(entries, bool(tokens), _inside(folder, entries, bool(tokens)))


def _entries(data: RunData, folder: Path, before: _Written) -> Iterator[Entry]:
    """Each of the ledger's files, written as far as it is missing."""
    known = {(entry.name, entry.key): entry for entry in before.entries}
    there = {path.name for path in folder.iterdir()}
    looks = [(step, True) for step in data.held_out_steps()]
    for step, is_held_out in sorted([*looks, *((step, False) for step in data.steps())]):
        name = held_out_name(step) if is_held_out else step_name(step)
        path = data.folder / "rollouts" / f"{name}.jsonl"
        with contextlib.suppress(FileNotFoundError):  # the run has taken it back meanwhile
            entry = Entry(step, is_held_out, _key(path))
            found = known.get((entry.name, entry.key))
            if found is None or not there.issuperset(found.files):
                found = _write(entry, data.rows_as(name, VIEWED_ROWS), folder)
            yield found


def _write(entry: Entry, rows: Iterator[ViewedRow], folder: Path) -> Entry:
    """Write the parts of an entry; returns it with what is in them, or with the problem."""
    writer = PartWriter({"name": entry.name, "key": entry.key})
    try:
        for part, content in enumerate(writer.parts(rows)):
            put(folder / _file(entry.name, part), content)
    except ValueError as error:
        entry.problem = str(error)
        return entry
    entry.summary = writer.summary
    return entry


def _file(name: str, part: int) -> str:
    return f"{name}_{part + 1}.js" if part else f"{name}.js"


def _key(path: Path) -> str:
    """What tells a file of the ledger from another one of its name."""
    with path.open("rb") as file:
        about = path.stat()
        file.seek(max(0, about.st_size - _END_BYTES))
        end = re.sub(rb"[^0-9a-f]", b"", file.read()[-20:])
    return f"{about.st_size:x}-{about.st_mtime_ns:x}-{end.decode()}"


def _read_index(folder: Path) -> _Written:
    try:
        found = msgspec.json.decode((folder / _INDEX).read_bytes(), type=_Written)
    except (OSError, ValueError):
        return _Written([])
    return found if found.format == _FORMAT else _Written([])


def _prompts(entries: list[Entry]) -> bytes:
    """Where the answers to each prompt are, as `[held out?, id, [[entry, part, group, answers], ...]]`."""
    prompts: dict[tuple[bool, str], list[tuple[int, int, int, int]]] = {}
    for number, entry in enumerate(entries):
        for place in entry.summary.places:
            found = prompts.setdefault((entry.is_held_out, place.id), [])
            found.append((number, place.part, place.group, place.size))
    names = [entry.name for entry in entries]
    return _encode({"names": names, "prompts": [(*key, places) for key, places in prompts.items()]})


def _write_tokens(data: RunData, folder: Path, before: _Written) -> str:
    """Write the texts of tokens; returns the checksum of the tokenizer that they are of, empty for none."""
    with contextlib.suppress(OSError, ValueError):  # then there are none
        path = find_tokenizer(data.folder, data.config)
        if path is not None:
            found = checksum_of_file(path)
            if found != before.tokenizer or not (folder / _TOKENS).exists():
                _put(folder / _TOKENS, script("tokens", _encode(read_token_texts(path))))
            return found
    (folder / _TOKENS).unlink(missing_ok=True)
    return ""


def _clear(folder: Path, entries: list[Entry]) -> None:
    """Remove the files of steps that are no more, and of parts that a step has no longer."""
    current = {name for entry in entries for name in entry.files}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in current:
            path.unlink(missing_ok=True)


def _inside(folder: Path, entries: list[Entry], has_tokens: bool) -> list[Markup]:
    """The files as scripts for the page itself; none if they are too large for that."""
    if sum(sum(entry.summary.sizes) for entry in entries) > INSIDE_BYTES:
        return []
    parts = [(folder / name).read_bytes() for entry in entries for name in entry.files]
    scripts = [(folder / _PROMPTS).read_bytes(), *parts]
    if has_tokens:
        used = {number for part in parts for number in _ids_in(part)}
        texts = msgspec.json.decode(_content((folder / _TOKENS).read_bytes()), type=TokenTexts)
        scripts.append(script("tokens", _encode(texts.only(used))))
    return [Markup(content.decode()) for content in scripts]


def _ids_in(part: bytes) -> Iterator[int]:
    for prompt in json.loads(_content(part))["prompts"]:  # halves of surrogate pairs, too
        yield from prompt.get("ids", ())
        for answer in prompt["answers"]:
            yield from answer.get("ids", ())


def _content(content: bytes) -> bytes:
    """The JSON in a script that `chunk_parts.script` has made."""
    return content[content.index(b"(") + 1 : content.rindex(b")")]


def _put(path: Path, content: bytes) -> None:
    """Write a file unless it is there with this content."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    put(path, content)


def _asset(name: str) -> str:
    return resources.files("rs_aligner.report").joinpath("assets", name).read_text(encoding="utf-8")
