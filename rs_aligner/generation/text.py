"""Where a response ends in its text: end strings, which may span several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """What the decoder asks of a tokenizer."""

    eos_ids: tuple[int, ...]

    def continuation(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """The text that the response adds to the prompt's, special tokens left out."""


def completes_end_string(
    tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], end_strings: Sequence[str]
) -> bool:
    """Whether the newest token of a response completes an end string."""
    # Decoding the last tokens is enough: one adds a byte at least, but for special tokens and the piece
    # that stands for a space alone; the margin is for those.
    reach = max(len(end.encode()) for end in end_strings) + 8
    before, tail = tokens[:-reach], tokens[-reach:]
    context = (*prompt, *before)[-reach:]
    return _end_string_at(tokenizer, context, tail, end_strings) is not None


def response_text(
    tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], end_strings: Sequence[str]
) -> str:
    """The response's text, up to the end string that ended it."""
    place = _end_string_at(tokenizer, prompt, tokens, end_strings)
    return tokenizer.continuation(prompt, tokens)[:place]


def _end_string_at(
    tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], end_strings: Sequence[str]
) -> int | None:
    """Where in the tokens' text the first end string begins that the newest token completes, if any.

    One that an earlier token completed was passed over for `min_length` and is text like any other.
    """
    text = tokenizer.continuation(prompt, tokens)
    if not any(end in text for end in end_strings):
        return None
    before = tokenizer.continuation(prompt, tokens[:-1]).rstrip("\ufffd")  # stands for part of a character
    places = [text.find(end, max(0, len(before) - len(end) + 1)) for end in end_strings]
    return min((place for place in places if place >= 0), default=None)
