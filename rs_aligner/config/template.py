r"""Prompt templates (`model.data.prompt_template`): how they are written, and how a row fills them in.

`{question}` is a key of the row, as in a Python format string, with its formats (`{n:03d}`). What differs is
what people type by mistake or out of habit, on a command line and about mathematics:

- `\n` and `\t` are a line break and a tab, and `\\` a backslash, since a shell hands them over as they are
  typed. Any other backslash stays, and so do these where they begin a LaTeX command (`\text`, `\neq`).
- `{{` and `}}` are braces, and so are single ones that cannot be a key: `\boxed{}`, `\frac{1}{2}`,
  `{"answer": 4}`. `\boxed{answer}` could be either, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_COMMANDS = """
nabla natural ncong ne nearrow neg neq newcommand newline nexists ngeq nleq nless nmid noindent nolimits
nonumber normalsize not notin nparallel nsubseteq nu nwarrow
tag tan tanh tau tbinom tfrac text textbf textit textnormal textrm textsc textsf texttt textup therefore theta
thickapprox thickspace thinspace tilde times tiny to top triangle triangleq tt
"""
_LATEX = frozenset(_COMMANDS.split())
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
_ESCAPE = re.compile(r"\\(\\|[A-Za-z]+)")
_FIELD = re.compile(r"\{(?P<name>[^\W\d][^{}!:.\[\]\\\"^=\n]*)(?:!(?P<how>[rsa]))?(?::(?P<format>[^{}]*))?\}")
_PARTS = re.compile(r"\{\w+(?:\.\w+|\[[^\]{}]*\])+(?:![rsa])?(?::[^{}]*)?\}")  # {a.b}, {a[0]}
_NAMELESS = re.compile(r"\{\d*(?:![rsa])?(?::[^{}]*)?\}")  # {}, {0}
_COMMAND = re.compile(r"\\[A-Za-z]+\*?$")


def example(key: str) -> str:
    """A template over a key of a row, as Hydra wants it; a shell needs double quotes around it."""
    return f"model.data.prompt_template='Question: {{{key}}}\\nAnswer:'"


@dataclass(frozen=True, slots=True)
class Field:
    """A key of the row, with what `format` makes of its value."""

    name: str
    how: str
    format: str

    def fill(self, value: Any) -> str:
        """The value as a text.

        Raises:
            ValueError: the format does not fit it.
        """
        how: dict[str, Callable[[Any], str]] = {"r": repr, "s": str, "a": ascii}
        return format(how[self.how](value) if self.how else value, self.format)


class PromptTemplate:
    """A template, ready to be filled in.

    Args:
        text: as it is written in the config.

    Raises:
        ValueError: it cannot be read, names no key, or what it means is not clear.
    """

    def __init__(self, text: str) -> None:
        self.pieces = _parse(_unescape(text))
        self.keys = tuple(piece.name for piece in self.pieces if isinstance(piece, Field))
        if not self.keys:
            raise ValueError("names no key of the row, so all prompts would be equal; write e.g. {question}")

    def fill(self, row: Mapping[str, Any], mark: Callable[[Any], Any] = lambda value: value) -> str:
        """The prompt of a row that has all the keys; `mark` is applied to each value.

        Raises:
            ValueError: a format does not fit its value.
        """
        return "".join(
            piece if isinstance(piece, str) else piece.fill(mark(row[piece.name])) for piece in self.pieces
        )


def _unescape(text: str) -> str:
    def meant(match: re.Match[str]) -> str:
        word = match[1]
        if word in _LATEX or word[0] not in _ESCAPES:
            return match[0]
        return _ESCAPES[word[0]] + word[1:]

    return _ESCAPE.sub(meant, text)


def _parse(text: str) -> tuple[str | Field, ...]:
    pieces: list[str | Field] = []
    literal = ""
    is_open: list[int] = []  # single braces that are text
    place = 0
    while place < len(text):
        rest = text[place : place + 2]
        if rest == "{{" or (rest == "}}" and not is_open):
            literal, place = literal + rest[0], place + 2
        elif field := _FIELD.match(text, place):
            if command := _COMMAND.search(literal):
                _refuse_command(command[0], field)
            pieces += [literal, Field(field["name"], field["how"] or "", field["format"] or "")]
            literal, place = "", field.end()
        elif text[place] == "{":
            _refuse_nameless(text, place, literal)
            is_open.append(place)
            literal, place = literal + "{", place + 1
        else:
            if text[place] == "}" and is_open:
                is_open.pop()
            literal, place = literal + text[place], place + 1
    if is_open:
        raise ValueError(
            f"is not a Python format string (the brace of {text[is_open[-1] :][:20]!r} is not closed): "
            "{question} is a key of the row, {{ a brace"
        )
    return tuple(piece for piece in (*pieces, literal) if piece)


def _refuse_command(command: str, field: re.Match[str]) -> None:
    written, name = command + field[0], field["name"]
    raise ValueError(
        f"has {written}, which could be LaTeX or the row's {name!r}: write {command}{{{field[0]}}} for the "
        f"text {written}, or {command}{{{{{field[0]}}}}} for the row's {name!r} in braces"
    )


def _refuse_nameless(text: str, place: int, before: str) -> None:
    """Refuse what looks like a field of Python's that has no key of a row, unless LaTeX has it so."""
    latex = _COMMAND.search(before) or before.rstrip()[-1:] in ("}", "^", "_")
    found = _PARTS.match(text, place) or (None if latex else _NAMELESS.match(text, place))
    if found:
        raise ValueError(
            f"has {found[0]}: should name whole keys of the row, e.g. {{question}}; not {{}}, {{0}}, {{a.b}} "
            f"or {{a[0]}}. For the text {found[0]} itself double the braces: {{{found[0]}}}"
        )
