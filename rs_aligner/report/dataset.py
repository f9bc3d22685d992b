"""The rollouts of a run as a data set: what was kept, pairs of kept and rejected, or all.

Two rollouts are one if prompt and response are the same texts. Of such the first that was kept is written, or
the first at all where none was; a pair is one with another if all three texts are the same. An answer without
a text, of an end token alone, is in `all` only. Steps are read one at a time; of what was written a digest a
row is held. Parquet is made in memory, column by column.
Left out on purpose: held-out answers, which are for looking at and not for training, and uploading.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice, product
from pathlib import Path
from typing import Any, Literal

import msgspec
import xxhash

from rs_aligner.files import make_folder, write_whole
from rs_aligner.record.ledger import step_name
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.report.run_data import RunData
from rs_aligner.report.shapes import Format, figures, one, pair_figures, turn_of, two

Content = Literal["kept", "pairs", "all"]
ENDINGS = (".jsonl", ".parquet")
_BATCH = 1000  # rows that become a piece of a parquet table


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
        content: which rollouts.
        shape: whose rows.
        bare: only the columns of the shape itself, without scores and reasons.
        pairs_per_group: most pairs of a group: those that are furthest apart in score.
    """

    content: Content = "kept"
    shape: Format = "trl"
    bare: bool = False
    pairs_per_group: int = 1


@dataclass
class Written:
    """How many rows were written; how many were left out since they were there already, or without a text."""

    rows: int = 0
    duplicates: int = 0
    empty: int = 0


class _Text(msgspec.Struct):
    """What tells rollouts apart: `LedgerRow`'s fields."""

    prompt: str
    response: str
    kept: bool


def write_dataset(run: RunData, path: Path, wanted: Wanted) -> Written:
    """Write the data set of a run, whole or not at all.

    Args:
        run: of rejection sampling; it may still be going on.
        path: the file, which is replaced; its ending says what it is, one of `ENDINGS`.
        wanted: what is to be in it.

    Raises:
        ValueError: the run has no rollouts, or none of that kind; the file has another ending; or the ledger
            is not as it was written.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} should end in {' or '.join(ENDINGS)}, which says what it is")
    if run.kind != "train_rs":
        raise ValueError(f"{run.folder} is a run of {run.kind}, which keeps no rollouts")
    if not run.steps():
        raise ValueError(f"{run.folder} has no rollouts yet: its first step is not selected")
    written = Written()
    rows = _pairs(run, wanted, written) if wanted.content == "pairs" else _answers(run, wanted, written)
    first = list(islice(rows, 1))
    if not first:
        nothing = {"pairs": "no kept rollout beside a rejected one that scores less", "kept": "nothing kept"}
        raise ValueError(f"{run.folder} has {nothing.get(wanted.content, 'no rollouts')}; nothing is written")
    make_folder(path.resolve().parent)
    (_write_parquet if path.suffix == ".parquet" else _write_lines)(path, _then(first, rows))
    return written


def _answers(run: RunData, wanted: Wanted, written: Written) -> Iterator[dict[str, Any]]:
    """Kept rollouts, or all."""
    kept_only = wanted.content == "kept"
    places = _first_places(run, written, kept_only=kept_only)
    is_chat = _is_chat(run)
    chosen = set(places.values())
    for step in sorted({step for step, _ in chosen}):
        for number, row in enumerate(run.rows(step)):
            if (step, number) in chosen:
                written.rows += 1
                made = one(wanted.shape, turn_of(row, is_chat=is_chat))
                if wanted.content == "all" and wanted.shape == "trl":
                    made["label"] = row.kept  # as trainers on unpaired preferences want it
                yield made | ({} if wanted.bare else figures(row))


def _first_places(run: RunData, written: Written, *, kept_only: bool) -> dict[bytes, tuple[int, int]]:
    """Where each text is written from, as step and line; what is left out is counted."""
    places: dict[bytes, tuple[int, int]] = {}
    kept: set[bytes] = set()
    decoder = msgspec.json.Decoder(_Text)
    for step in run.steps():
        for number, row in enumerate(run.rows_as(step_name(step), decoder)):
            if kept_only and (not row.kept or not row.response.strip()):
                written.empty += row.kept
                continue
            key = _digest(row.prompt, row.response)
            written.duplicates += key in places
            if key not in places or (row.kept and key not in kept):
                places[key] = step, number
            if row.kept:
                kept.add(key)
    return places


def _pairs(run: RunData, wanted: Wanted, written: Written) -> Iterator[dict[str, Any]]:
    """Of each group the kept and rejected that are furthest apart."""
    is_chat, seen = _is_chat(run), set()
    for step in run.steps():
        for _, group in groupby(run.rows(step), key=lambda row: row.group):
            for better, worse in _furthest_apart(list(group), wanted.pairs_per_group):
                key = _digest(better.prompt, better.response, worse.response)
                if key in seen:
                    written.duplicates += 1
                    continue
                seen.add(key)
                written.rows += 1
                turns = turn_of(better, is_chat=is_chat), turn_of(worse, is_chat=is_chat)
                yield two(wanted.shape, *turns) | ({} if wanted.bare else pair_figures(better, worse))


def _furthest_apart(group: list[LedgerRow], most: int) -> list[tuple[LedgerRow, LedgerRow]]:
    """Pairs of a kept rollout and a rejected one that scores less, by falling distance, ties in order."""
    scored = [(row.reward, row) for row in group if row.reward is not None and row.response.strip()]
    pairs = [
        (good - bad, better, worse)
        for (good, better), (bad, worse) in product(scored, scored)
        if better.kept and not worse.kept and good > bad and better.response != worse.response
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [(better, worse) for _, better, worse in pairs[:most]]


def _is_chat(run: RunData) -> bool:
    """Whether chats became prompts by the tokenizer's template, and not by one of the config."""
    data = (run.config.get("model") or {}).get("data") or {}
    return data.get("prompt_template") is None


def _digest(*texts: str) -> bytes:
    found = xxhash.xxh3_128()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.digest()


def _then(first: Iterable[dict[str, Any]], rest: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from first
    yield from rest


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_whole(path, (json.dumps(row).encode() + b"\n" for row in rows))


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pieces = []
    while batch := list(islice(rows, _BATCH)):
        pieces.append(pyarrow.Table.from_pylist(batch))
    table = pyarrow.concat_tables(pieces, promote_options="permissive")
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    write_whole(path, [sink.getvalue().to_pybytes()])
