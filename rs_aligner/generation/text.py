"""Where a response ends in its text: end strings, which may span several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """What the decoder asks of a tokenizer."""

    eos_ids: tuple[int, ...]

    def continuation(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """The text that the response adds to the prompt's, special tokens left out."""


class EndStrings:
    """Notices when the newest token of a response completes one of these texts.

    Args:
        tokenizer: of the policy.
        end_strings: the texts; none for never.
    """

    def __init__(self, tokenizer: Tokenizer, end_strings: Sequence[str]) -> None:
        self.tokenizer, self.end_strings = tokenizer, end_strings
        # Decoding the last tokens is enough: one adds a byte at least, but for special tokens and the piece
        # that stands for a space alone; the margin is for those.
        self._reach = max((len(end.encode()) for end in end_strings), default=0) + 8
        self._lasts = {end[-1] for end in end_strings}
        self._may: dict[int, bool] = {}

    def may_complete(self, token: int) -> bool:
        """False where a token cannot be the last of an end string: it has not even its last character.

        Most tokens are sorted out here, looked at once; only the others are worth decoding in their place.
        """
        if token not in self._may:
            text = self.tokenizer.continuation((token,), (token,))  # not alone: its spaces depend on that
            unclear = not text or "\ufffd" in text  # part of a character, or of how words are joined
            self._may[token] = unclear or not self._lasts.isdisjoint(text)
        return self._may[token]

    def completed(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the newest of a response's tokens completes an end string."""
        before, tail = tokens[: -self._reach], tokens[-self._reach :]
        context = (*prompt, *before)[-self._reach :]
        return _end_string_at(self.tokenizer, context, tail, self.end_strings) is not None


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
