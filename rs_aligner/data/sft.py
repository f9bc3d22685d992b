"""Files of prompts with the responses to learn, for supervised training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rs_aligner.data.rows import (
    Tokenizer,
    account,
    check_messages,
    check_text,
    prompt_text,
    read_rows,
    shown_keys,
    tokenize,
    tokenize_response,
)
from rs_aligner.rollout import TrainingRow


@dataclass(frozen=True)
class SFTSet:
    """The rows of some files, in file order, and how many were left out as too long."""

    rows: tuple[TrainingRow, ...]
    num_too_long: int


def load_sft_rows(
    files: Sequence[str],
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    add_bos: bool | None = None,
    max_length: int,
    max_prompt_length: int | None = None,
) -> SFTSet:
    """Reads files of prompts with their responses.

    A row is `{"prompt", "response"}`, a chat whose last message is the assistant's answer, or, with a
    template, any row with a `response`.

    Args:
        files: JSON Lines files.
        tokenizer: turns texts into tokens; its first end token closes every response.
        template: a format string over a row's keys for the prompt; None for `prompt` or `messages`.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.
        max_length: rows of more tokens than this, prompt and response together, are left out.
        max_prompt_length: so are those whose prompt has more tokens than this; None for no such limit.

    Raises:
        ValueError: a row is malformed (with file and line), or nothing is left.
    """
    rows: list[TrainingRow] = []
    num_too_long = 0
    for where, row in read_rows(files):
        prompt_row, response = _split_response(where, row, template)
        text, is_chat = prompt_text(where, prompt_row, tokenizer, template, "prompt")
        prompt_ids = tokenize(where, text, tokenizer, is_chat, add_bos)
        response_ids = tokenize_response(where, text, prompt_ids, response, tokenizer, is_chat, add_bos)
        is_too_long = max_prompt_length is not None and len(prompt_ids) > max_prompt_length
        if is_too_long or len(prompt_ids) + len(response_ids) > max_length:
            num_too_long += 1
        else:
            rows.append(TrainingRow(prompt_ids, response_ids))
    account(files, "rows", len(rows), num_too_long, max_length)
    return SFTSet(tuple(rows), num_too_long)


def _split_response(where: str, row: dict[str, Any], template: str | None) -> tuple[dict[str, Any], str]:
    if "messages" not in row or template is not None:
        if "response" not in row:
            raise ValueError(f"{where}: has no 'response' but {shown_keys(row)}")
        return row, check_text(where, "'response'", row["response"])
    messages = check_messages(where, row["messages"])
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(f"{where}: should end with the assistant's answer to a message before it")
    return {**row, "messages": messages[:-1]}, check_text(where, "the answer", messages[-1]["content"])
