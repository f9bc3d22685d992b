"""Files of prompts with the responses to learn, for supervised training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rs_aligner.data.batches import Item, read_batches
from rs_aligner.data.chats import check_messages
from rs_aligner.data.columns import advice
from rs_aligner.data.kept import How, Reading, kept
from rs_aligner.data.overlap import Origins, Places
from rs_aligner.data.reading import ReadingTokenizer, RowReader
from rs_aligner.data.rows import account, check_text, numbered_rows, shown_keys
from rs_aligner.data.shapes import in_our_shape
from rs_aligner.data.stored import StoredRows
from rs_aligner.data.storing import Found
from rs_aligner.rollout import TrainingRow


@dataclass(frozen=True)
class SFTSet:
    """The rows of some files, in file order, how many were left out as too long, and where each stands."""

    rows: Sequence[TrainingRow]
    num_too_long: int
    origins: Places = field(default_factory=Origins, compare=False)


def load_sft_rows(
    files: Sequence[str],
    tokenizer: ReadingTokenizer,
    *,
    template: str | None = None,
    add_bos: bool | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int,
    max_prompt_length: int | None = None,
) -> SFTSet:
    """Reads files of prompts with their responses.

    A row is `{"prompt", "response"}`, a chat whose last message is the assistant's answer, with a template
    any row with a `response`, or one of these as others write it (`data/shapes.py`). An answer whose row says
    `finish_reason: "length"` was cut, and gets no end token.

    Args:
        files: of any format (`formats.py`).
        tokenizer: turns texts into tokens, and says what closes a response.
        template: a format string over a row's keys for the prompt; None for `prompt` or `messages`.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.
        columns: our names for what stands elsewhere in a row (`model.data.columns`).
        max_length: rows of more tokens than this, prompt and response together, are left out.
        max_prompt_length: so are those whose prompt has more tokens than this; None for no such limit.

    Raises:
        ValueError: a row is malformed (with file and line), or nothing is left.
    """
    how = How(tokenizer, template, add_bos, columns or {}, max_length, max_prompt_length)
    found = kept(_Rows, files, how)
    return SFTSet(found.items, found.left_out["too long"], found.origins)


class _Rows(Reading[TrainingRow]):
    """Rows with the responses to learn."""

    kind, what = StoredRows, "rows"

    def found(self) -> Iterator[Found[TrainingRow]]:
        """Those that are not too long, in order."""
        reader, how = self.reader, self.how
        items = (
            _item(where, in_our_shape(where, row), reader, how.template is not None)._replace(rest=file)
            for file, where, row in numbered_rows(self.files, how.columns)
        )
        for (where, row, (response,), file), prompt in read_batches(reader, items, "prompt"):
            prompt_ids, response_ids = (
                prompt.token_ids,
                reader.response(where, prompt, response, is_closed=row.get("finish_reason") != "length"),
            )
            is_too_long = how.max_prompt_length is not None and len(prompt_ids) > how.max_prompt_length
            if is_too_long or len(prompt_ids) + len(response_ids) > how.max_length:
                self.left_out["too long"] += 1
            else:
                yield Found(TrainingRow(prompt_ids, response_ids), where, file, prompt.text, (response,))

    def account(self, number: int) -> None:
        """Say what was left out; see `rows.account`."""
        account(self.files, self.what, number, self.left_out["too long"], self.how.max_length)


def _item(where: str, row: dict[str, Any], reader: RowReader, has_template: bool) -> Item:
    """The row, with the response apart from the prompt."""
    if "messages" not in row or has_template:
        if "response" not in row:
            found = advice(row, *(("response",) if has_template else ("prompt", "response")))
            what = f"set {found}" if found else "no other text in it could be the answer"
            raise ValueError(f"{where}: has no 'response' but {shown_keys(row)}; {what}")
        return Item(where, row, (check_text(where, "'response'", row["response"]),))
    messages = check_messages(where, row["messages"])
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: should end with the assistant's answer to a message before it")
    return Item(where, {**row, "messages": messages[:-1]}, (reader.answer(where, row, messages),))
