"""Files of prompts with a better and a worse answer, for a reward model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rs_aligner.data.batches import Item, read_batches
from rs_aligner.data.columns import Wanted, advice
from rs_aligner.data.kept import How, Reading, kept
from rs_aligner.data.overlap import Origins, Places
from rs_aligner.data.reading import ReadingTokenizer
from rs_aligner.data.rows import account, check_text, numbered_rows, shown_keys
from rs_aligner.data.shapes import in_our_shape
from rs_aligner.data.stored import StoredPairs
from rs_aligner.data.storing import Found
from rs_aligner.rollout import PreferencePair

_ANSWERS: tuple[Wanted, ...] = ("chosen", "rejected")
_logger = logging.getLogger("rs_aligner")


@dataclass(frozen=True)
class PairSet:
    """The pairs of some files, in file order, how many were left out, and why, and where each stands."""

    pairs: Sequence[PreferencePair]
    num_too_long: int
    num_ties: int
    origins: Places = field(default_factory=Origins, compare=False)


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
    how = How(tokenizer, template, add_bos, columns or {}, max_length, max_prompt_length)
    found = kept(_Pairs, files, how)
    return PairSet(found.items, found.left_out["too long"], found.left_out["ties"], found.origins)


class _Pairs(Reading[PreferencePair]):
    """Rows with two answers."""

    kind, what = StoredPairs, "pairs"

    def found(self) -> Iterator[Found[PreferencePair]]:
        """Those that say something and are not too long, in order."""
        reader, how = self.reader, self.how
        items = (
            _item(where, in_our_shape(where, row), how.template is not None)._replace(rest=file)
            for file, where, row in numbered_rows(self.files, how.columns)
        )
        for (where, row, answers, file), prompt in read_batches(reader, items, "prompt"):
            chosen, rejected = (prompt.token_ids + reader.response(where, prompt, text) for text in answers)
            pair = PreferencePair(chosen, rejected)
            if chosen == rejected:
                self.left_out["ties"] += 1
            elif len(pair) > how.max_length or len(prompt.token_ids) > (
                how.max_prompt_length or how.max_length
            ):
                self.left_out["too long"] += 1
            else:
                yield Found(pair, where, file, prompt.text, (row["chosen"], row["rejected"]))

    def account(self, number: int) -> None:
        """Say what was left out; see `rows.account`."""
        names, ties, too_long = ", ".join(self.files), self.left_out["ties"], self.left_out["too long"]
        if ties and not number and not too_long:
            raise ValueError(f"{names}: no pairs to use (in all {ties}, chosen and rejected are the same)")
        account(self.files, self.what, number, too_long, self.how.max_length)
        if ties:
            _logger.warning("%s: left out %d pairs whose answers are the same", names, ties)


def _item(where: str, row: dict[str, Any], has_template: bool) -> Item:
    """The row, with its two answers."""
    for key in _ANSWERS:
        if key not in row:
            found = advice(row, *(_ANSWERS if has_template else ("prompt", *_ANSWERS)))
            what = f"set {found}" if found else "no two texts in it could be the answers"
            raise ValueError(f"{where}: has no {key!r} but {shown_keys(row)}; {what}")
    return Item(where, row, [check_text(where, repr(key), row[key]) for key in _ANSWERS])
