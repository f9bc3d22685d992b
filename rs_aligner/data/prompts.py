"""Prompt files: `{"text": ...}`, a chat `{"messages": [...]}`, or any row with a template over its keys.

What other programs call a text or a chat is one, too (`shapes.py`). The whole row travels on as metadata, for
the judge, with what the chat template begins the answer with, if anything, under the key `prefilled`. A
prompt that is too long is counted and left out, never cut and never replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rs_aligner.data.batches import Item, read_batches
from rs_aligner.data.kept import How, Reading, kept
from rs_aligner.data.overlap import Origins, Places
from rs_aligner.data.reading import ReadingTokenizer
from rs_aligner.data.rows import account, numbered_rows
from rs_aligner.data.shapes import as_prompt
from rs_aligner.data.stored import StoredPrompts
from rs_aligner.data.storing import Found
from rs_aligner.rollout import Prompt


@dataclass(frozen=True)
class PromptSet:
    """The prompts of some files, in file order.

    Attributes:
        prompts: those that can be used.
        num_too_long: how many were left out because they are too long.
        origins: where each of `prompts` stands.
    """

    prompts: Sequence[Prompt]
    num_too_long: int
    origins: Places = field(default_factory=Origins, compare=False)


def load_prompts(
    files: Sequence[str],
    tokenizer: ReadingTokenizer,
    *,
    template: str | None = None,
    add_bos: bool | None = None,
    columns: Mapping[str, str] | None = None,
    max_prompt_length: int,
) -> PromptSet:
    """Reads prompt files.

    Args:
        files: of any format (`formats.py`).
        tokenizer: turns texts into tokens.
        template: a format string over a row's keys (`model.data.prompt_template`); None for rows that
            have `text` or `messages`.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.
        columns: our names for what stands elsewhere in a row (`model.data.columns`).
        max_prompt_length: prompts of more tokens than this are left out.

    Returns:
        The prompts; `Prompt.position` is the place in file order until an order gives another.

    Raises:
        ValueError: a row is malformed (with file and line), or nothing is left.
    """
    found = kept(_Prompts, files, How(tokenizer, template, add_bos, columns or {}, max_prompt_length))
    return PromptSet(found.items, found.left_out["too long"], found.origins)


class _Prompts(Reading[Prompt]):
    """Rows as prompts."""

    kind, what = StoredPrompts, "prompts"

    def found(self) -> Iterator[Found[Prompt]]:
        """Those that are not too long, in order."""
        reader, position, has_template = self.reader, 0, self.how.template is not None
        items = (
            Item(where, row if has_template else as_prompt(where, row), rest=file)
            for file, where, row in numbered_rows(self.files, self.how.columns)
        )
        for (where, row, _, file), read in read_batches(reader, items, "text"):
            if len(read.token_ids) > self.how.max_length:
                self.left_out["too long"] += 1
                continue
            told = reader.metadata(where, row, read)
            prompt = Prompt(row_id(where, row), read.text, read.token_ids, metadata=told, position=position)
            yield Found(prompt, where, file, read.text)
            position += 1

    def account(self, number: int) -> None:
        """Say what was left out; see `rows.account`."""
        account(self.files, self.what, number, self.left_out["too long"], self.how.max_length)


def row_id(where: str, row: dict[str, Any]) -> str:
    """The row's own id, or its file and line.

    Raises:
        ValueError: the id is neither a text nor a whole number.
    """
    value = row.get("id")
    if value is None:
        return where
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ValueError(f"{where}: id should be a text or a whole number, not {value!r}")
    return str(value)
