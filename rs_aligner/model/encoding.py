"""Texts, and parts of texts, to token ids, with as little of the tokenizer's own rules as is wanted.

Left out on purpose: which parts of a text are plain, which is for those to say who know where it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_AT_ONCE = 256  # texts; what the library makes of more does not stay in a core's caches


class Encoder:
    """Text to token ids.

    Args:
        tokenizer: of `transformers`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ready: dict[str, list[int]] = {}
        self._numbers: list[int] = []
        self._before = self._own_rule()

    def encode(self, text: str, *, is_chat: bool = False, plain: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Token ids.

        A begin token leads if that is the tokenizer's own rule and the text does not have it already. An end
        token that the tokenizer puts behind every text is left out: a prompt goes on, and what closes an
        answer is not its business.

        Args:
            text: what is read.
            is_chat: whether a chat template has written all that belongs in front; nothing is added then.
            plain: parts of the text, by first and last place, that are no control tokens though they look so.
        """
        ids = self._around(text, plain) if plain else self._raw(text)
        if is_chat or ids[: len(self._before)] == self._before:
            return ids
        return [*self._before, *ids]

    def _around(self, text: str, plain: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens of a text with parts that are spelled out."""
        ids: list[int] = []
        place = 0
        for first, last in (*plain, (len(text), len(text))):
            between = text[place:first]
            ids += self.inside(between) if place else self._raw(between)
            ids += self._spelled(text[first:last])
            place = last
        return ids

    def prepare(self, texts: Sequence[str]) -> None:
        """Tokenize texts all at once, so that `encode` need not; they take the place of those before them.

        Equal ids become one object, which is most of what a million prompts take in memory.
        """
        wanted = list(dict.fromkeys(filter(None, texts)))
        self._ready = {}
        if len(wanted) > 1:
            self._ready = dict(zip(wanted, map(self._as_one, self._batch(wanted)), strict=True))

    def _as_one(self, ids: list[int]) -> list[int]:
        try:
            return list(map(self._numbers.__getitem__, ids))
        except IndexError:
            self._numbers += range(len(self._numbers), max(ids) + 1)
            return self._as_one(ids)

    def _batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts, by the library underneath where there is one: it leaves out what nobody asks for."""
        library: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if hasattr(library, "encode_batch_fast"):
            first = self._raw(texts[0])  # sets it up as the tokenizer wants it: no padding, nothing cut
            pieces = (texts[begin : begin + _AT_ONCE] for begin in range(0, len(texts), _AT_ONCE))
            found = [
                one.ids
                for piece in pieces
                for one in library.encode_batch_fast(piece, add_special_tokens=False)
            ]
            if found[0] == first:
                return found
        return [self._raw(text) for text in texts]

    def inside(self, text: str) -> list[int]:
        """Tokens of a text that stands behind another one: no space in front is made up."""
        if not text:
            return []
        anchor, ids = self._raw("\n"), self._raw("\n" + text)
        return ids[len(anchor) :] if anchor and ids[: len(anchor)] == anchor else self._raw(text)

    def _raw(self, text: str) -> list[int]:
        if (ready := self._ready.get(text)) is not None:
            return ready
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _spelled(self, token: str) -> list[int]:
        """The tokens of a control token's characters: cut in two, it is not that token any more."""
        return self.inside(token[:1]) + self.inside(token[1:])

    def _own_rule(self) -> list[int]:
        """What the tokenizer puts in front of every text; what it puts behind is not wanted."""
        bare, whole = self._raw("a"), list(self._tokenizer("a")["input_ids"])
        starts = (n for n in range(len(whole) - len(bare) + 1) if whole[n : n + len(bare)] == bare)
        return whole[: next(starts, 0)]
