"""What each token of a run's tokenizer reads as, so that a page can cut an answer where the policy did.

From `tokenizer.json` alone, which needs no library and no model. A token may hold a part of a character only,
so what is known of it are bytes. Whether the texts spell an answer is for the reader to see, answer by
answer, and to say where they do not: the tokenizer may not be the run's. Left out on purpose: tokenizers of
other files (`tokenizer.model`, `vocab.json`), of whose answers no token is coloured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from rs_aligner.files import CHECKPOINT_PART

FILE = "tokenizer.json"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>\Z")
_MARK = "▁"  # of a word's beginning, in tokenizers of the SentencePiece kind


class TokenTexts(msgspec.Struct):
    """The vocabulary as a page has it.

    Attributes:
        texts: by token id; a list of bytes where they are no whole characters, None where no token has it.
        control: ids of control tokens: those that stand beside the vocabulary, runs of spaces apart.
        ids: of what `texts` are; empty where they are all, from 0.
    """

    texts: list[str | list[int] | None]
    control: list[int]
    ids: list[int] = []

    def only(self, ids: set[int]) -> TokenTexts:
        """The same for some ids."""
        known = sorted(number for number in ids if number < len(self.texts))
        control = ids.intersection(self.control)
        return TokenTexts([self.texts[number] for number in known], sorted(control), known)


def find_tokenizer(folder: Path, config: dict[str, Any]) -> Path | None:
    """The `tokenizer.json` of a run: in what it has written, else where its model came from.

    Args:
        folder: of the run.
        config: of the run, as a tree.
    """
    saved = sorted((folder / "checkpoints").glob(f"step_*/{CHECKPOINT_PART}"), reverse=True)
    places = [folder / "final", *saved]
    start = config.get("pretrained_checkpoint")
    if isinstance(start, dict) and isinstance(start.get("restore_from_path"), str):
        model = Path(start["restore_from_path"]).expanduser()
        places += [model, model / CHECKPOINT_PART]
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_token_texts(path: Path) -> TokenTexts:
    """The texts of a tokenizer's tokens.

    Raises:
        ValueError: it is no `tokenizer.json` that can be read here.
    """
    try:
        content = msgspec.json.decode(path.read_bytes())
        read = _reader(content.get("decoder") or {})
        texts: dict[int, str | list[int] | None] = {
            number: _shown(read(token)) for token, number in _vocabulary(content["model"])
        }
        added = content.get("added_tokens") or []
        texts |= {token["id"]: token["content"] for token in added}
        control = [token["id"] for token in added if token.get("special") or token["content"].strip()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no tokenizer that can be read ({error!r})") from None
    return TokenTexts([texts.get(number) for number in range(max(texts, default=-1) + 1)], sorted(control))


def _vocabulary(model: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Tokens with their ids: a table, or for `Unigram` a list of tokens with their likelihoods."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        yield from ((token, number) for number, (token, *_) in enumerate(vocabulary))


def _reader(decoder: dict[str, Any]) -> Callable[[str], bytes]:
    """From a token as it is spelled in the vocabulary to the bytes that it stands for."""
    parts = decoder.get("decoders") or [decoder]
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        table = _byte_table()
        return lambda token: b"".join(table.get(one) or one.encode() for one in token)
    if "WordPiece" in kinds:
        prefix = next(part for part in parts if part["type"] == "WordPiece").get("prefix", "##")
        return lambda token: (token[len(prefix) :] if token.startswith(prefix) else f" {token}").encode()
    has_bytes = "ByteFallback" in kinds

    def read(token: str) -> bytes:
        byte = _BYTE.match(token) if has_bytes else None
        return bytes([int(byte[1], 16)]) if byte else token.replace(_MARK, " ").encode()

    return read


def _shown(content: bytes) -> str | list[int]:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return list(content)


def _byte_table() -> dict[str, bytes]:
    """The letters that byte-level vocabularies write bytes with.

    Bytes that are printable in Latin-1 stand for themselves, the others for the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)}
