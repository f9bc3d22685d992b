"""The policy's tokenizer, read from its Hugging Face folder, reduced to what the project asks of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers


class Tokenizer:
    """Text to tokens and back.

    Attributes:
        bos_id: the begin token, if there is one.
        eos_ids: every token that ends a response (a model may have several).
        pad_id: a token that can fill rows up, since it ends no response: the padding token, else the begin
            token; None if there is no such token.
    """

    def __init__(self, folder: Path) -> None:
        """Reads the tokenizer.

        Raises:
            ValueError: the folder has none, or no end token is named anywhere.
        """
        if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            raise ValueError(f"{folder} has no tokenizer (tokenizer.json); copy the model's there")
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises whatever its parsers raise
            raise ValueError(f"{folder}: the tokenizer cannot be read ({error})") from error
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.eos_ids = _end_tokens(folder, self._tokenizer.eos_token_id)
        if not self.eos_ids:
            raise ValueError(f"{folder}: no end token; set eos_token_id in generation_config.json")
        fillers = (self._tokenizer.pad_token_id, self.bos_id)
        self.pad_id = next((i for i in fillers if i is not None and i not in self.eos_ids), None)

    @property
    def num_ids(self) -> int:
        """One more than the largest token id, added tokens included."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """Token ids; a begin token leads if that is the tokenizer's own rule."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special tokens left out."""
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def continuation(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """The text that the response adds behind the prompt's, special tokens left out.

        Tokenizers that mark words by a leading space drop it at the start of a text, so the response
        is decoded with the prompt before it.
        """
        before, whole = self.decode(prompt), self.decode((*prompt, *response))
        return whole[len(before) :] if whole.startswith(before) else self.decode(response)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work at all."""
        return self._tokenizer.chat_template is not None

    def apply_chat_template(self, messages: list[dict[str, Any]]) -> str:
        """The chat as the model wants it, up to where its answer begins.

        Raises:
            ValueError: the tokenizer has no chat template, or the template refuses the messages.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )
        except Exception as error:  # Jinja raises what the template raises
            raise ValueError(str(error)) from error


def _end_tokens(folder: Path, default: int | None) -> tuple[int, ...]:
    """All end tokens: those of `generation_config.json`, else of `config.json`, and the tokenizer's own."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if value is not None:
            found = list(value) if isinstance(value, list) else [value]
            break
    if default is not None:
        found.append(default)
    return tuple(dict.fromkeys(found))
