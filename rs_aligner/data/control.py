"""Control tokens that are spelled out in data: found before a template is filled in, plain text after.

A user's message that has `<|im_end|>` in it must not end the turn. So such places are put between two marks,
which travel through the template, and are taken out of its text again. Left out on purpose: what a `text` row
or an answer says, which is the model's own language and read as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_FIRST, _LAST = "\U0010fdd0", "\U0010fdd1"  # of a private use area; taken out of the data where it has them
_MARKED = re.compile(f"{_FIRST}(.*?){_LAST}", re.DOTALL)
Spans = tuple[tuple[int, int], ...]


class ControlTokens:
    """The control tokens of a tokenizer.

    Args:
        tokens: their texts, the longest first.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._any = re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def found(self, text: str) -> list[str]:
        """Those in a text, each once."""
        return list(dict.fromkeys(self._any.findall(text)))

    def mark(self, value: Any) -> Any:
        """The value, a text or what holds texts, with its control tokens marked."""
        if isinstance(value, str):
            bare = value.replace(_FIRST, "").replace(_LAST, "")
            return self._any.sub(f"{_FIRST}\\g<0>{_LAST}", bare)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.mark(item) for item in value]
        return value


def unmark(text: str) -> tuple[str, Spans]:
    """The text without marks, and where what was marked begins and ends in it."""
    if _FIRST not in text:
        return text.replace(_LAST, ""), ()
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    place = length = 0
    for match in _MARKED.finditer(text):
        before, inside = (_bare(part) for part in (text[place : match.start()], match[1]))
        length += len(before)
        spans.append((length, length + len(inside)))
        length += len(inside)
        parts += [before, inside]
        place = match.end()
    return "".join([*parts, _bare(text[place:])]), tuple(spans)


def _bare(text: str) -> str:
    """A template may have cut a marked place in two; lone marks go."""
    return text.replace(_FIRST, "").replace(_LAST, "")
