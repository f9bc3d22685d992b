"""A tokenizer's chat template: what it makes of a chat, and what it writes around the assistant's turns.

What ends a turn, and what the template begins an answer with, cannot be read off a list of end tokens. So a
small chat is rendered with and without an answer, and the texts are compared. Left out on purpose: tokens
(`tokenizer.py`), and whether a row is a chat at all (`rs_aligner.data`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

# Texts that no template writes itself. They neither begin nor end with white space, which templates trim.
_QUESTION, _ANSWER, _NEXT, _CUT = "Zq7question", "Zq7answer", "Zq7next", "Zq7cut"
OURS = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "return_dict",
        "return_tensors",
        "return_assistant_tokens_mask",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "tokenizer_kwargs",
    }
)
"""Arguments of a rendering that are not the template's, or that are set here."""


@dataclass(frozen=True)
class TurnMarks:
    """What a template writes around an assistant's turn.

    Attributes:
        end: behind the answer that ends a chat.
        following: behind an answer that a user's turn follows, up to what the user says.
        opening: between what the user says and the answer, where the answer is in the chat.
        prompt: behind what the user says, where the answer is still to come (the generation prompt).
        prefill: the part of `prompt` that belongs to the answer, such as `<think>` and a line break.
    """

    end: str = ""
    following: str = ""
    opening: str = ""
    prompt: str = ""
    prefill: str = ""


class ChatTemplate:
    """A chat template with the arguments that it is always given.

    Args:
        tokenizer: of `transformers`.
        arguments: what the template reads beside the messages, such as `enable_thinking`.

    Raises:
        ValueError: an argument that the template does not read.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self.arguments = tokenizer, dict(arguments or {})
        self._marks: dict[str, TurnMarks] = {}
        self.check_arguments(self.arguments)

    @property
    def sources(self) -> list[str]:
        """The template's text, or the texts of several; empty where there is none."""
        found = getattr(self._tokenizer, "chat_template", None)
        return list(found.values()) if isinstance(found, Mapping) else [found] if found else []

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """See to it that the template reads these.

        Raises:
            ValueError: it does not, or they are set by the program.
        """
        for name in arguments:
            if not self.sources:
                raise ValueError(f"chat_template_kwargs has {name}, but the tokenizer has no chat template")
            if name in OURS:
                raise ValueError(f"chat_template_kwargs.{name} is set by the program; leave it out")
            if not self.reads(name):
                known = ", ".join(sorted((self._variables() or set()) - OURS)) or "nothing but the messages"
                raise ValueError(f"chat_template_kwargs.{name}: the chat template reads {known}")

    def only_read(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row, its own arguments for the template only those that this one reads."""
        arguments = row.get("chat_template_kwargs")
        if not isinstance(arguments, dict):
            return row
        kept = {name: value for name, value in arguments.items() if self.reads(name)}
        return {**row, "chat_template_kwargs": kept}

    def reads(self, name: str) -> bool:
        """Whether the template reads this argument, as far as can be told."""
        read = self._variables()
        return name not in OURS and (read is None or name in read)

    def render(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        prompt: bool = True,
    ) -> str:
        """The chat as a text; with `prompt`, up to where the next answer begins.

        Raises:
            ValueError: there is no template, or it refuses the messages.
        """
        how = {**self.arguments, **(arguments or {})}
        if tools:
            how["tools"] = tools
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompt, **how
                )
            )
        except Exception as error:  # Jinja raises what the template raises
            raise ValueError(str(error)) from error

    def prompt(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, str]:
        """The chat as the model wants it, up to where its answer begins or goes on.

        Args:
            messages: a last one of the assistant is gone on with.
            tools: what the assistant may call.
            arguments: of the template, for this chat only.

        Returns:
            The text, and the part of it that the answer begins with: what the template or the last message
            puts in front, or nothing.

        Raises:
            ValueError: there is no template, it refuses the messages, or leaves the last one out.
        """
        self.check_arguments(arguments or {})
        prefill = self.marks(arguments).prefill
        last = messages[-1]
        if last["role"] != "assistant":
            text = self.render(messages, tools, arguments)
            return text, prefill if text.endswith(prefill) else ""
        marked = {**last, "content": f"{last['content']}{_CUT}"}
        text = self.render([*messages[:-1], marked], tools, arguments, prompt=False)
        if _CUT not in text:
            raise ValueError("the template leaves out the assistant's turn that is to be gone on with")
        text = text[: text.rindex(_CUT)]
        opened = self.render(messages[:-1], tools, arguments) if len(messages) > 1 else ""
        turn = opened.removesuffix(prefill)
        return text, text[len(turn) :] if turn and text.startswith(turn) else str(last["content"])

    def answer(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """What the template writes for the last message, the assistant's, behind the prompt before it.

        Raises:
            ValueError: there is no template, it refuses the messages, or writes the prompt in another way.
        """
        prompt = self.render(messages[:-1], tools, arguments)
        whole = self.render(messages, tools, arguments, prompt=False)
        if not whole.startswith(prompt):
            raise ValueError("the template does not write the assistant's turn behind its own prompt")
        return whole[len(prompt) :].removesuffix(self.marks(arguments).end)

    def marks(self, arguments: Mapping[str, Any] | None = None) -> TurnMarks:
        """What the template writes around an assistant's turn; empty texts where that cannot be told."""
        key = json.dumps(dict(arguments), sort_keys=True, default=str) if arguments else "{}"
        if key not in self._marks:
            self._marks[key] = self._compare(arguments) if self.sources else TurnMarks()
        return self._marks[key]

    def _compare(self, arguments: Mapping[str, Any] | None) -> TurnMarks:
        """Render the same chat with and without an answer, and with a turn behind it."""
        question: Message = {"role": "user", "content": _QUESTION}
        answer: Message = {"role": "assistant", "content": _ANSWER}
        following: Message = {"role": "user", "content": _NEXT}
        for lead in ([], [{"role": "system", "content": "Zq7system"}]):  # some insist on one, some refuse it
            chat = [*lead, question]
            asked = self._try(chat, arguments, prompt=True)
            whole = self._try([*chat, answer], arguments)
            longer = self._try([*chat, answer, following], arguments)
            if _ANSWER in whole or _ANSWER in longer:
                break
        prompt = _behind(asked, _QUESTION)
        # Some templates write an answer that ends the chat in another way, with a trace of its thoughts.
        openings = [_between(text, _QUESTION, _ANSWER) for text in (longer, whole) if _ANSWER in text]
        begun = next((opening for opening in openings if opening and prompt.startswith(opening)), "")
        return TurnMarks(
            end=_behind(whole, _ANSWER),
            following=_between(longer, _ANSWER, _NEXT),
            opening=openings[0] if openings else "",
            prompt=prompt,
            prefill=prompt[len(begun) :] if begun else "",
        )

    def _try(
        self, messages: list[Message], arguments: Mapping[str, Any] | None, *, prompt: bool = False
    ) -> str:
        try:
            return self.render(messages, None, arguments, prompt=prompt)
        except ValueError:
            return ""

    def _variables(self) -> frozenset[str] | None:
        """What the template reads of its arguments; None where it cannot be parsed here."""
        import jinja2
        import jinja2.ext
        import jinja2.meta

        class Generation(jinja2.ext.Extension):
            """The tag around the assistant's tokens, which `transformers` adds to the language."""

            tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        language = jinja2.Environment(extensions=[Generation, jinja2.ext.loopcontrols])
        found: set[str] = set()
        try:
            for source in self.sources:
                found |= jinja2.meta.find_undeclared_variables(language.parse(source))
        except jinja2.TemplateSyntaxError:
            return None
        return frozenset(found - {"raise_exception", "strftime_now", "bos_token", "eos_token"})


def _behind(text: str, mark: str) -> str:
    return text[text.rindex(mark) + len(mark) :] if mark in text else ""


def _between(text: str, first: str, second: str) -> str:
    if first not in text or second not in text:
        return ""
    return text[text.index(first) + len(first) : text.rindex(second)]
