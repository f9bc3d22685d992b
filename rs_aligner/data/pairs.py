"""Files of prompts with a better and a worse answer, for a reward model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rs_aligner.data.batches import Item, read_batches
from rs_aligner.data.columns import Wanted, advice
from rs_aligner.data.overlap import Origins
from rs_aligner.data.reading import ReadingTokenizer, RowReader
from rs_aligner.data.rows import account, check_text, numbered_rows, shown_keys
from rs_aligner.data.shapes import in_our_shape
from rs_aligner.rollout import PreferencePair

_ANSWERS: tuple[Wanted, ...] = ("chosen", "rejected")
_logger = logging.getLogger("rs_aligner")


@dataclass(frozen=True)
class PairSet:
    """The pairs of some files, in file order, how many were left out, and why, and where each stands."""

    pairs: tuple[PreferencePair, ...]
    num_too_long: int
    num_ties: int
    origins: Origins = field(default_factory=Origins, compare=False)


def load_pairs(
    files: Sequence[str],
    tokenizer: ReadingTokenizer,
    *,
    template: str | None = None,
    add_bos: bool | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int,
    max_prompt_length: int | None = None,
) -> PairSet:
    """Reads files of preference pairs.

    A row has `chosen` and `rejected`, the texts of two answers, and the prompt as `prompt`, as a chat
    (`messages`) or as a template makes it; or all of it as others write it (`data/shapes.py`). A row whose
    two answers are the same says nothing, and is left out and counted, as is one that is too long.

    Args:
        files: of any format (`formats.py`).
        tokenizer: turns texts into tokens, and says what closes an answer.
        template: a format string over a row's keys for the prompt; None for `prompt` or `messages`.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.
        columns: our names for what stands elsewhere in a row (`model.data.columns`).
        max_length: most tokens of prompt and answer together.
        max_prompt_length: most tokens of a prompt; None for no such limit.

    Raises:
        ValueError: a row is malformed (with file and line), or nothing is left.
    """
    pairs: list[PreferencePair] = []
    num_too_long = num_ties = 0
    reader, origins = RowReader(tokenizer, template, add_bos), Origins()
    items = (
        _item(where, in_our_shape(where, row), template is not None)._replace(rest=file)
        for file, where, row in numbered_rows(files, columns)
    )
    for (where, row, answers, file), prompt in read_batches(reader, items, "prompt"):
        chosen, rejected = (prompt.token_ids + reader.response(where, prompt, answer) for answer in answers)
        pair = PreferencePair(chosen, rejected)
        if chosen == rejected:
            num_ties += 1
        elif len(pair) > max_length or len(prompt.token_ids) > (max_prompt_length or max_length):
            num_too_long += 1
        else:
            origins.add(where, prompt.text, row["chosen"], row["rejected"], file=file)
            pairs.append(pair)
    reader.tell()
    names = ", ".join(files)
    if num_ties and not pairs and not num_too_long:
        raise ValueError(f"{names}: no pairs to use (in all {num_ties}, chosen and rejected are the same)")
    account(files, "pairs", len(pairs), num_too_long, max_length)
    if num_ties:
        _logger.warning("%s: left out %d pairs whose answers are the same", names, num_ties)
    return PairSet(tuple(pairs), num_too_long, num_ties, origins)


def _item(where: str, row: dict[str, Any], has_template: bool) -> Item:
    """The row, with its two answers."""
    for key in _ANSWERS:
        if key not in row:
            found = advice(row, *(_ANSWERS if has_template else ("prompt", *_ANSWERS)))
            what = f"set {found}" if found else "no two texts in it could be the answers"
            raise ValueError(f"{where}: has no {key!r} but {shown_keys(row)}; {what}")
    return Item(where, row, [check_text(where, repr(key), row[key]) for key in _ANSWERS])
