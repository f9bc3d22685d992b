"""Where a response ends in its text: end strings, which may span several tokens or be special ones.

An end string is looked for in the text with all its special tokens; what is handed on has only those that the
tokenizer shows. One that is a single special or added token ends a response by its id, as an end token does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

_LOOKS_SPECIAL = re.compile(
    r"<[|\uff5c].+[|\uff5c]>|<extra_id_\d+>|</?s>|<(eos|bos|pad|unk|(end|start)_of_turn)>|\[/?[A-Z]+\]"
)


class DecodingTokenizer(Protocol):
    """What the decoder asks of a tokenizer."""

    eos_ids: tuple[int, ...]

    def continuation(self, prompt: Sequence[int], response: Sequence[int], *, raw: bool = False) -> str:
        """The text that the response adds to the prompt's; of special tokens those to be shown, or all."""

    def token(self, text: str) -> int | None:
        """The id of the special or added token that is written like this; None if there is none."""


class EndStrings:
    """Notices when the newest token of a response completes one of these texts.

    Args:
        tokenizer: of the policy.
        end_strings: the texts; none for never.

    Attributes:
        eos_ids: the tokens that end a response: the tokenizer's, and the end strings that are one token.
    """

    def __init__(self, tokenizer: DecodingTokenizer, end_strings: Sequence[str]) -> None:
        self.tokenizer, self.end_strings = tokenizer, end_strings
        ids = (tokenizer.token(text) for text in end_strings)
        self.eos_ids = tuple(dict.fromkeys((*tokenizer.eos_ids, *(i for i in ids if i is not None))))
        # Decoding the last tokens is enough: one adds a byte at least, but for the piece that stands for a
        # space alone; the margin is for those.
        self._reach = max((len(end.encode()) for end in end_strings), default=0) + 8
        self._lasts = {end[-1] for end in end_strings}
        self._may: dict[int, bool] = {}

    def may_complete(self, token: int) -> bool:
        """False where a token cannot be the last of an end string: it has not even its last character.

        Most tokens are sorted out here, looked at once; only the others are worth decoding in their place.
        """
        if token not in self._may:
            text = self.tokenizer.continuation(
                (token,), (token,), raw=True
            )  # not alone: its spaces depend on it
            unclear = not text or "\ufffd" in text  # part of a character, or of how words are joined
            self._may[token] = unclear or not self._lasts.isdisjoint(text)
        return self._may[token]

    def completed(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the newest of a response's tokens completes an end string."""
        before, tail = tokens[: -self._reach], tokens[-self._reach :]
        context = (*prompt, *before)[-self._reach :]
        return _end_string_at(self.tokenizer, context, tail, self.end_strings) is not None

    def text(self, prompt: Sequence[int], tokens: Sequence[int], *, has_ended: bool) -> str:
        """A response's text, without the end token or the end string that ended it.

        Args:
            prompt: token ids of the prompt.
            tokens: of the response, the ending token included.
            has_ended: whether it ended by itself; else it was cut, and all of it is text.
        """
        place = _end_string_at(self.tokenizer, prompt, tokens, self.end_strings) if has_ended else None
        if place is not None:
            return self._cut(prompt, tokens, place)
        if has_ended and tokens and tokens[-1] in self.eos_ids:
            tokens = tokens[:-1]
        return self.tokenizer.continuation(prompt, tokens)

    def _cut(self, prompt: Sequence[int], tokens: Sequence[int], place: int) -> str:
        """The first `place` characters of the text with all special tokens, less those that are not shown."""
        whole = len(tokens)  # tokens that end before the place
        while whole and len(self.tokenizer.continuation(prompt, tokens[:whole], raw=True)) > place:
            whole -= 1
        before = self.tokenizer.continuation(prompt, tokens[:whole])
        if len(self.tokenizer.continuation(prompt, tokens[:whole], raw=True)) == place:
            return before
        # The token that the end string begins in has some of the response in front, if it is shown.
        shown = self.tokenizer.continuation(prompt, tokens[: whole + 1])
        all_of_it = self.tokenizer.continuation(prompt, tokens[: whole + 1], raw=True)
        return shown[: len(shown) - (len(all_of_it) - place)] if len(shown) > len(before) else before


def unknown_special(tokenizer: DecodingTokenizer, end_strings: Sequence[str]) -> list[str]:
    """End strings that are written like special tokens, and are none of this tokenizer's."""
    return [end for end in end_strings if _LOOKS_SPECIAL.fullmatch(end) and tokenizer.token(end) is None]


def _end_string_at(
    tokenizer: DecodingTokenizer, prompt: Sequence[int], tokens: Sequence[int], end_strings: Sequence[str]
) -> int | None:
    """Where in the tokens' text the first end string begins that the newest token completes, if any.

    The text is that with all special tokens. An end string that an earlier token completed was passed over
    for `min_length` and is text like any other.
    """
    if not end_strings:
        return None
    text = tokenizer.continuation(prompt, tokens, raw=True)
    if not any(end in text for end in end_strings):
        return None
    before = tokenizer.continuation(prompt, tokens[:-1], raw=True)
    before = before.rstrip("\ufffd")  # stands for part of a character
    places = [text.find(end, max(0, len(before) - len(end) + 1)) for end in end_strings]
    return min((place for place in places if place >= 0), default=None)
