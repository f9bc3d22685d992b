"""What a row's prompt and its answers become: text, and tokens. The same for every command, and for judges.

A control token is one where the policy's own language is read: in a `text` row, in the words of
`model.data.prompt_template`, in an answer, and where the chat template writes it. In what people say, which
is a chat's messages (but the assistant's) and the values that a template puts in, it is plain text. What a
user should know of many rows is told once, with the first of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rs_aligner.config.template import PromptTemplate
from rs_aligner.data.chats import Message, arguments_of, check_messages, tools_of
from rs_aligner.data.columns import prompt_advice
from rs_aligner.data.control import ControlTokens, Spans, unmark
from rs_aligner.data.rows import check_text, shown_keys
from rs_aligner.rollout import PREFILLED

_logger = logging.getLogger("rs_aligner")


class ReadingTokenizer(Protocol):
    """What is asked of a tokenizer here; `model.tokenizer.Tokenizer` says what each means."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    control_tokens: tuple[str, ...]

    @property
    def fingerprint(self) -> str | None: ...

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any]: ...

    def encode(
        self, text: str, *, is_chat: bool = False, plain: Sequence[tuple[int, int]] = ()
    ) -> list[int]: ...

    def prepare(self, texts: Sequence[str]) -> None: ...

    def decode(self, ids: Sequence[int], *, raw: bool = False) -> str: ...

    def closing(self, is_chat: bool) -> tuple[int, ...]: ...

    def token(self, text: str) -> int | None: ...

    def apply_chat_template(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, str]: ...

    def answer_in_template(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str: ...

    def chat_in(self, text: str) -> tuple[bool, bool, str]: ...


class ReadPrompt(NamedTuple):
    """A row's prompt.

    Attributes:
        text: as fed to the model.
        token_ids: the same, with the begin token that leads.
        is_turn: whether the answer is an assistant's turn, which ends as the chat template ends one.
        has_its_begin: whether a chat template has written all that belongs in front.
        prefilled: what the answer begins with, and the prompt ends with; empty for nothing.
        plain: parts of the text that are no control tokens.
        goes_on: whether `prefilled` is the assistant's own last message, and not only the template's.
    """

    text: str
    token_ids: tuple[int, ...]
    is_turn: bool
    has_its_begin: bool
    prefilled: str
    plain: Spans
    goes_on: bool = False


class RowReader:
    """Reads rows for one tokenizer, and remembers what there is to tell of them.

    Args:
        tokenizer: turns texts into tokens.
        template: `model.data.prompt_template`; None for rows that have a text or messages.
        add_bos: whether prompts start with the begin token; None for the tokenizer's own rule.

    Raises:
        ValueError: a begin token is asked for that there is not.
    """

    def __init__(
        self, tokenizer: ReadingTokenizer, template: str | None = None, add_bos: bool | None = None
    ) -> None:
        if add_bos and tokenizer.bos_id is None:
            raise ValueError(
                "model.data.add_bos is true, but the tokenizer has no begin token; set it to null"
            )
        self.tokenizer, self._add_bos = tokenizer, add_bos
        self._template = None if template is None else PromptTemplate(template)
        self._control = ControlTokens(tokenizer.control_tokens)
        self._notes: dict[str, tuple[int, str]] = {}
        self._saw_chats = False

    def prompt(self, where: str, row: dict[str, Any], key: str) -> ReadPrompt:
        """The prompt of a row: of the template, of its `key`, or of its `messages`.

        Raises:
            ValueError: it has none; with its file and line.
        """
        return self.tokenized(where, self.draft(where, row, key))

    def draft(self, where: str, row: dict[str, Any], key: str) -> ReadPrompt:
        """The same, without tokens."""
        if self._template is not None:
            text, plain = unmark(self._fill(where, self._template, row))
            return self._read(where, check_text(where, "the prompt", text), plain)
        if key in row and "messages" in row:
            raise ValueError(
                f"{where}: has both {key!r} and 'messages'; keep one, or set model.data.prompt_template"
            )
        if key in row:
            return self._read(where, check_text(where, repr(key), row[key]), (), is_free=True)
        if "messages" not in row:
            raise ValueError(
                f"{where}: has neither {key!r} nor 'messages' but {shown_keys(row)}{prompt_advice(row)}"
            )
        return self._chat(where, row)

    def tokenized(self, where: str, draft: ReadPrompt) -> ReadPrompt:
        """The prompt of a draft."""
        text, _, is_turn, begun, prefilled, plain, goes_on = draft
        ids = self._tokenize(where, text, begun, plain)
        return ReadPrompt(text, ids, is_turn, begun, prefilled, plain, goes_on)  # half the time of _replace

    def answer(self, where: str, row: dict[str, Any], messages: list[Message]) -> str:
        """The text of the assistant's last turn; with tool calls or thoughts, as the chat template writes it.

        Raises:
            ValueError: it is empty, or the template does not write it behind the prompt.
        """
        last = messages[-1]
        if not last.get("tool_calls") and not last.get("reasoning_content"):
            return check_text(where, "the answer", last["content"])
        try:
            text = self.tokenizer.answer_in_template(messages, tools_of(where, row), arguments_of(where, row))
        except ValueError as error:
            raise ValueError(f"{where}: the chat template cannot be applied ({error})") from error
        return check_text(where, "the answer", text)

    def response(
        self, where: str, prompt: ReadPrompt, text: str, *, is_closed: bool = True
    ) -> tuple[int, ...]:
        """Token ids of an answer behind its prompt, and of what closes it unless it was cut.

        It is tokenized behind the prompt where that leaves the prompt's tokens as they are, else by itself.
        """
        closing = self.tokenizer.closing(prompt.is_turn) if is_closed else ()
        if prompt.prefilled and not prompt.goes_on:
            text = self._without_prefill(where, prompt.prefilled, text)
        both = self._tokenize(where, prompt.text + text, prompt.has_its_begin, prompt.plain)
        ids = both[len(prompt.token_ids) :]
        if both[: len(prompt.token_ids)] != prompt.token_ids:
            ids = tuple(self.tokenizer.encode(text, is_chat=True)) if text else ()
        if closing and ids[-len(closing) :] == closing:
            self._note("the answer ends with its end token already, which is kept once", where)
            ids = ids[: -len(closing)]
        if not set(self.tokenizer.eos_ids).isdisjoint(ids):
            self._note("the answer has an end token inside, behind which a sampled one would stop", where)
        return ids + closing

    def alone(self, where: str, text: str) -> tuple[int, ...]:
        """Token ids of an answer whose prompt is not known, and of what closes it."""
        return self._tokenize(where, text, False, ()) + self.tokenizer.closing(False)

    def metadata(self, where: str, row: dict[str, Any], prompt: ReadPrompt) -> dict[str, Any]:
        """What a judge is told of a row: the whole of it, and what the answer begins with already.

        Raises:
            ValueError: the row has something else under the key for that.
        """
        if not prompt.prefilled:
            return row
        if row.get(PREFILLED, prompt.prefilled) != prompt.prefilled:
            raise ValueError(
                f"{where}: has the key {PREFILLED!r}, under which the judge is told what the prompt begins "
                "the answer with; rename it"
            )
        return {**row, PREFILLED: prompt.prefilled}

    def notes(self) -> dict[str, Any]:
        """What there is to tell, as plain JSON values."""
        return {"rows": {what: list(found) for what, found in self._notes.items()}, "chats": self._saw_chats}

    def recall(self, notes: dict[str, Any]) -> None:
        """Have the same to tell as a reader before."""
        self._notes = {what: (count, first) for what, (count, first) in notes["rows"].items()}
        self._saw_chats = notes["chats"]

    def tell(self) -> None:
        """Log what was noted, a line each."""
        for what, (count, first) in self._notes.items():
            rows = "1 row" if count == 1 else f"{count:,} rows, the first"
            _logger.warning("data: %s (%s: %s)", what, rows, first)
        self._notes.clear()
        if self.tokenizer.chat_template_kwargs and not self._saw_chats:
            _logger.warning("model.data.chat_template_kwargs has no effect: no row is a chat")

    def _note(self, what: str, where: str) -> None:
        count, first = self._notes.get(what, (0, where))
        self._notes[what] = count + 1, first

    def _fill(self, where: str, template: PromptTemplate, row: dict[str, Any]) -> str:
        for name in template.keys:
            if name not in row:
                raise ValueError(
                    f"{where}: model.data.prompt_template names {name!r}, the row has {shown_keys(row)}; for "
                    f"the text {{{name}}} itself double the braces"
                )
            if not isinstance(row[name], str | int | float):
                raise ValueError(f"{where}: {name!r} should be a text or a number, not {row[name]!r}")
        try:
            return template.fill(row, self._control.mark)
        except ValueError as error:
            raise ValueError(f"{where}: model.data.prompt_template does not fit the row ({error})") from None

    def _chat(self, where: str, row: dict[str, Any]) -> ReadPrompt:
        self._saw_chats = True
        messages, tools = check_messages(where, row["messages"]), tools_of(where, row)
        if messages[-1]["role"] == "assistant":
            if messages[-1].get("tool_calls"):
                raise ValueError(
                    f"{where}: ends with the assistant's tool calls; what they gave has to follow, with the "
                    "role 'tool'"
                )
            self._note("ends with the assistant's turn, which the policy goes on with", where)
        said = [m if m["role"] == "assistant" else self._control.mark(m) for m in messages]
        try:
            marked, prefilled = self.tokenizer.apply_chat_template(
                said, self._control.mark(tools), arguments_of(where, row)
            )
        except ValueError as error:
            raise ValueError(f"{where}: the chat template cannot be applied ({error})") from error
        text, plain = unmark(marked)
        check_text(where, "the chat", text)
        self._note_plain(where, plain)
        return ReadPrompt(text, (), True, True, prefilled, plain, messages[-1]["role"] == "assistant")

    def _read(self, where: str, text: str, plain: Spans, *, is_free: bool = False) -> ReadPrompt:
        """A prompt that no chat template has made here; with `is_free` it may have made it elsewhere."""
        is_turn, has_its_begin, prefilled = self.tokenizer.chat_in(text)
        self._note_plain(where, plain)
        if is_free and not is_turn:
            tokens = self._control.found(text)
            if tokens and not (text.startswith(tokens[0]) and self._is_begin(tokens)):
                self._note("the text has control tokens in it, which are read as such", where)
        return ReadPrompt(text, (), is_turn, has_its_begin, prefilled, plain)

    def _is_begin(self, tokens: Sequence[str]) -> bool:
        bos = self.tokenizer.bos_id
        return bos is not None and [self.tokenizer.token(token) for token in tokens] == [bos]

    def _note_plain(self, where: str, plain: Spans) -> None:
        if plain:
            self._note("control tokens in what a user says are read as plain text", where)

    def _tokenize(self, where: str, text: str, is_chat: bool, plain: Spans) -> tuple[int, ...]:
        ids, bos = self.tokenizer.encode(text, is_chat=is_chat, plain=plain), self.tokenizer.bos_id
        if self._add_bos and ids[:1] != [bos]:
            ids = [bos, *ids]  # type: ignore[list-item]  # there is one where one is added
        if self._add_bos is False and bos is not None and ids[:1] == [bos]:
            ids = ids[1:]
        if not ids:
            raise ValueError(f"{where}: the text has no tokens")
        return tuple(ids)

    def _without_prefill(self, where: str, prefilled: str, text: str) -> str:
        """The answer without a beginning that the prompt has already."""
        begun = prefilled.strip()
        if not begun:
            return text
        if text.startswith(prefilled):
            rest = text[len(prefilled) :]
        elif text.lstrip().startswith(begun):
            rest = text.lstrip()[len(begun) :].lstrip()
        else:
            if text.lstrip().startswith(first := begun.split()[0]):
                self._note(
                    f"the answer begins with {first!r}, which the prompt has, too, and closes; see "
                    "model.data.chat_template_kwargs",
                    where,
                )
            return text
        self._note(
            f"the answer begins with {begun!r}, which the prompt ends with already; it is kept once", where
        )
        return rest
