"""Rows of JSON Lines files, and the text and tokens that a row's prompt becomes.

A row that cannot be used is an error that names its file and line, and what would work.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol

from rs_aligner.config.base import template_keys

_logger = logging.getLogger("rs_aligner")


class Tokenizer(Protocol):
    """What is asked of a tokenizer here."""

    bos_id: int | None
    eos_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Token ids; a begin token leads if that is the tokenizer's own rule."""

    def apply_chat_template(self, messages: list[dict[str, Any]]) -> str:
        """The chat as the model wants it, up to where its answer begins."""


def read_rows(files: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its `file:line`. Empty lines are skipped, but counted."""
    for name in files:
        with open(name, "rb") as file:
            # As bytes, so that only a line break ends a line, and a decoding error knows its line.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{name}:{number}"
                    yield where, _parse(where, line)


def _parse(where: str, line: bytes) -> dict[str, Any]:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        row = json.loads(line.decode("utf-8"), parse_constant=refuse_constant)
        # A lone surrogate, \ud800, passes as JSON but is no text: neither tokenizer nor judge takes it.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{where}: not valid UTF-8 text ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f'{where}: should be an object such as {{"text": ...}}, not {type(row).__name__}')
    return row


def prompt_text(
    where: str, row: dict[str, Any], tokenizer: Tokenizer, template: str | None, key: str
) -> tuple[str, bool]:
    """The text to feed to the model, and whether a chat template made it."""
    if template is not None:
        for name in template_keys(template):
            if name not in row:
                raise ValueError(
                    f"{where}: model.data.prompt_template names {name!r}, the row has {shown_keys(row)}"
                )
            if not isinstance(row[name], str | int | float):
                raise ValueError(f"{where}: {name!r} should be a text or a number, not {row[name]!r}")
        try:
            text = template.format_map(row)
        except ValueError as error:
            raise ValueError(f"{where}: model.data.prompt_template does not fit the row ({error})") from None
        return check_text(where, "the prompt", text), False
    if key in row and "messages" in row:
        raise ValueError(
            f"{where}: has both {key!r} and 'messages'; keep one, or set model.data.prompt_template"
        )
    if key in row:
        return check_text(where, repr(key), row[key]), False
    if "messages" not in row:
        raise ValueError(
            f"{where}: has neither {key!r} nor 'messages' but {shown_keys(row)}; set "
            "model.data.prompt_template, for example to 'Question: {question}\\nAnswer:'"
        )
    messages = check_messages(where, row["messages"])
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{where}: ends with the assistant's turn; a prompt ends where the model is to answer"
        )
    try:
        text = tokenizer.apply_chat_template(messages)
    except ValueError as error:
        raise ValueError(f"{where}: the chat template cannot be applied ({error})") from error
    return check_text(where, "the chat", text), True


def check_messages(where: str, value: Any) -> list[dict[str, Any]]:
    """The chat, if it is one."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: 'messages' should be a list of at least one message, not {value!r}")
    for message in value:
        texts = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None,)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{where}: a message should have the texts 'role' and 'content', not {message!r}"
            )
    return value


def check_text(where: str, what: str, value: Any) -> str:
    """The value, if it is a text with something in it."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {what} should be a text, not {value!r}")
    if not value.strip():
        raise ValueError(f"{where}: {what} is empty")
    return value


def shown_keys(row: dict[str, Any]) -> str:
    """The row's keys, for a message."""
    return ", ".join(map(repr, row)) or "no keys"


def tokenize(
    where: str, text: str, tokenizer: Tokenizer, is_chat: bool, add_bos: bool | None
) -> tuple[int, ...]:
    """Token ids of a text, with the begin token that `model.data.add_bos` asks for.

    None leaves it to the tokenizer's rule for a plain text, and to the chat template for a chat.
    """
    ids, bos = tokenizer.encode(text), tokenizer.bos_id
    # A chat template writes its own begin token, so the one that `encode` adds by rule is one too many.
    if is_chat and bos is not None and tokenizer.encode("")[:1] == [bos]:
        ids = ids[1:]
    if add_bos and bos is None:
        raise ValueError("model.data.add_bos is true, but the tokenizer has no begin token; set it to null")
    if add_bos and ids[:1] != [bos]:
        ids = [bos, *ids]  # type: ignore[list-item]
    if add_bos is False and bos is not None and ids[:1] == [bos]:
        ids = ids[1:]
    if not ids:
        raise ValueError(f"{where}: the text has no tokens")
    return tuple(ids)


def tokenize_response(
    where: str,
    prompt: str,
    prompt_ids: tuple[int, ...],
    response: str,
    tokenizer: Tokenizer,
    is_chat: bool,
    add_bos: bool | None,
) -> tuple[int, ...]:
    """Token ids of a response, closed by the first end token.

    It is tokenized behind its prompt where that leaves the prompt's tokens as they are, else by itself.
    """
    both_ids = tokenize(where, prompt + response, tokenizer, is_chat, add_bos)
    response_ids = both_ids[len(prompt_ids) :]
    if both_ids[: len(prompt_ids)] != prompt_ids:
        response_ids = tokenize(where, response, tokenizer, False, False)
    return response_ids + tokenizer.eos_ids[:1]


def account(files: Sequence[str], what: str, num_kept: int, num_too_long: int, longest: int) -> None:
    """Says what was left out, and refuses to go on with nothing."""
    names = ", ".join(files) or "no files"
    if num_kept == 0:
        reason = f"all {num_too_long} are longer than {longest} tokens" if num_too_long else "no rows"
        raise ValueError(
            f"{names}: no {what} to use ({reason}); see model.data.seq_length, model.data.data_prefix"
        )
    if num_too_long:
        _logger.warning("%s: left out %d %s of more than %d tokens", names, num_too_long, what, longest)
