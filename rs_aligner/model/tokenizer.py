"""The policy's tokenizer, read from its Hugging Face folder, reduced to what the project asks of it.

What ends an assistant's turn is what the chat template writes behind one (`chat_template.py`), not the first
of a list. Left out on purpose: which texts become tokens, and how rows with answers are put together
(`rs_aligner.data`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rs_aligner.files import checksum
from rs_aligner.model.chat_template import ChatTemplate, Message, TurnMarks
from rs_aligner.model.encoding import Encoder
from rs_aligner.model.tokenizer_files import checksum_of_tokenizer, named_end_tokens, read_files

_logger = logging.getLogger("rs_aligner")


class Tokenizer:
    """Text to tokens and back.

    Args:
        folder: a Hugging Face folder.

    Attributes:
        bos_id: the begin token, if there is one.
        eos_ids: every token that ends a response: those that the model names, the tokenizer's own, and the
            one that the chat template writes behind an assistant's turn.
        named_eos_ids: those of them that the folder's `generation_config.json` (or `config.json`) names.
        taught_eos_ids: all of them, and what training teaches besides: end strings that are one token.
        pad_id: a token that can fill rows up, since it ends no response: the padding token, else the begin
            token; None if there is no such token.

    Raises:
        ValueError: the folder has no tokenizer, or no end token is named anywhere.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            raise ValueError(f"{folder} has no tokenizer (tokenizer.json); copy the model's there")
        try:
            self._tokenizer = read_files(folder)
        except Exception as error:  # transformers raises whatever its parsers raise
            if isinstance(error, MemoryError) or "failed to map segment" in str(error):
                raise  # too little memory, perhaps for a library that is imported now
            raise ValueError(f"{folder}: the tokenizer cannot be read ({error!r})") from error
        self._folder = folder
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self._own_eos: int | None = self._tokenizer.eos_token_id
        self.named_eos_ids = named_end_tokens(folder)
        self._ids: dict[str, int] = self._tokenizer.get_vocab()
        added = self._tokenizer.added_tokens_decoder
        self._added = {token.content: number for number, token in added.items()}
        self._special = {number for number, token in added.items() if token.special}
        self._special |= set(self._tokenizer.all_special_ids)
        self._encoder = Encoder(self._tokenizer)
        self._hidden, self._told = frozenset(self._special), False
        self.configure()
        if not self.eos_ids:
            raise ValueError(f"{folder}: no end token; set eos_token_id in generation_config.json")

    def configure(
        self,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        judge_special_tokens: bool | Sequence[str] = False,
        end_strings: Sequence[str] = (),
    ) -> None:
        """Say what the chat template is always given, and what a response's text shows and ends with.

        Args:
            chat_template_kwargs: `model.data.chat_template_kwargs`.
            judge_special_tokens: `model.data.judge_special_tokens`: all (True), none (False), or these.
            end_strings: those that responses end with in training; the ones that are tokens are taught.

        Raises:
            ValueError: an argument that the template does not read, or a text that is none of its tokens.
        """
        try:
            self.template = ChatTemplate(self._tokenizer, chat_template_kwargs)
        except ValueError as error:
            raise ValueError(f"model.data.{error}") from None
        if isinstance(judge_special_tokens, bool):
            shown = self._special if judge_special_tokens else set()
        else:
            unknown = [text for text in judge_special_tokens if text not in self._ids]
            if unknown:
                known = ", ".join(sorted(text for text, i in self._added.items() if i in self._special))
                raise ValueError(
                    f"model.data.judge_special_tokens has {unknown[0]!r}, which is no token of the "
                    f"tokenizer; its special tokens are {known}"
                )
            shown = {self._ids[text] for text in judge_special_tokens}
        self._hidden = frozenset(self._special - shown)
        self._turn_end = self._find_turn_end(self.template.marks())
        own = () if self._own_eos is None else (self._own_eos,)
        self.eos_ids = tuple(dict.fromkeys((*self.named_eos_ids, *own, *self._turn_end[-1:])))
        taught = [self._added[text] for text in end_strings if text in self._added]
        self.taught_eos_ids = tuple(dict.fromkeys((*self.eos_ids, *taught)))
        fillers = (self._tokenizer.pad_token_id, self.bos_id)
        self.pad_id = next((i for i in fillers if i is not None and i not in self.eos_ids), None)
        controls = {text for text, number in self._added.items() if self._is_control(text, number)}
        self.control_tokens = tuple(sorted(controls, key=len, reverse=True))

    @property
    def num_ids(self) -> int:
        """One more than the largest token id, added tokens included."""
        return 1 + max(self._ids.values(), default=-1)

    @property
    def end_token_changes(self) -> dict[str, list[int]]:
        """What a saved model's config has to name so that others stop where training taught to."""
        missing = set(self.taught_eos_ids) - set(self.named_eos_ids)
        return {"eos_token_id": list(self.taught_eos_ids)} if missing else {}

    def notes(self) -> list[str]:
        """What a user should know of this tokenizer, a line each."""
        end = self._turn_end[-1:]
        if not end or end[0] in self.named_eos_ids:
            return []
        token = self._tokenizer.convert_ids_to_tokens(end[0])
        return [
            f"an assistant's turn ends with {token}, as the chat template has it; generation_config.json "
            "does not name it, what is saved will"
        ]

    # Text to tokens

    def encode(self, text: str, *, is_chat: bool = False, plain: Sequence[tuple[int, int]] = ()) -> list[int]:
        """Token ids of a prompt or an answer; see `Encoder.encode`."""
        return self._encoder.encode(text, is_chat=is_chat, plain=plain)

    def prepare(self, texts: Sequence[str]) -> None:
        """Tokenize what `encode` is going to be asked for next, all at once; see `Encoder.prepare`."""
        self._encoder.prepare(texts)

    def closing(self, is_chat: bool) -> tuple[int, ...]:
        """What closes a response: the end of a turn, or the end token for other texts.

        Args:
            is_chat: whether the response is an assistant's turn.
        """
        if is_chat and self._turn_end:
            return self._turn_end
        return self.eos_ids[:1] if self._own_eos is None else (self._own_eos,)

    def token(self, text: str) -> int | None:
        """The id of the special or added token that is written like this; None if there is none."""
        return self._added.get(text)

    def known_ids(self, vocab_size: int) -> np.ndarray:
        """Which of a model's ids are tokens: bool `[vocab_size]`. Padded vocabularies have others."""
        known = np.zeros(vocab_size, dtype=bool)
        known[[number for number in (*self._ids.values(), *self.eos_ids) if number < vocab_size]] = True
        return known

    # Tokens to text

    def decode(self, ids: Sequence[int], *, raw: bool = False) -> str:
        """The text of tokens; special ones only as `judge_special_tokens` says, or with `raw` all."""
        if not raw and len(self._hidden) == len(self._special):
            kept, skips = list(ids), True
        else:
            kept, skips = [i for i in ids if raw or i not in self._hidden], False
        return str(
            self._tokenizer.decode(kept, skip_special_tokens=skips, clean_up_tokenization_spaces=False)
        )

    def continuation(self, prompt: Sequence[int], response: Sequence[int], *, raw: bool = False) -> str:
        """The text that the response adds behind the prompt's, special tokens as for `decode`.

        Tokenizers that mark words by a leading space drop it at the start of a text, so the response
        is decoded with the prompt before it. Special tokens that are left out are told of, once.
        """
        if not raw:
            self._note_hidden(response)
        before, whole = self.decode(prompt, raw=raw), self.decode((*prompt, *response), raw=raw)
        return whole[len(before) :] if whole.startswith(before) else self.decode(response, raw=raw)

    def _note_hidden(self, ids: Sequence[int]) -> None:
        if self._told or self._hidden.isdisjoint(ids):
            return
        self._told = True
        found = dict.fromkeys(str(self._tokenizer.convert_ids_to_tokens(i)) for i in ids if i in self._hidden)
        _logger.warning(
            "responses have special tokens in them that the judge does not see, such as %s; to show them set "
            "model.data.judge_special_tokens=true",
            " ".join(found),
        )

    @property
    def fingerprint(self) -> str | None:
        """Of all that decides which tokens a row becomes; None where it is the day, too."""
        if any("strftime_now" in source for source in self.template.sources):
            return None
        told = json.dumps(self.chat_template_kwargs, sort_keys=True, default=str)
        return checksum((checksum_of_tokenizer(self._folder) + told).encode())

    # Chats

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """What the chat template is always given."""
        return self.template.arguments

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work at all."""
        return bool(self.template.sources)

    def apply_chat_template(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[str, str]:
        """The chat as the model wants it, and what its answer begins with; see `ChatTemplate.prompt`."""
        return self.template.prompt(messages, tools, arguments)

    def answer_in_template(
        self,
        messages: list[Message],
        tools: list[Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """What the chat template writes for the last message; see `ChatTemplate.answer`."""
        return self.template.answer(messages, tools, arguments)

    def chat_in(self, text: str) -> tuple[bool, bool, str]:
        """What of a text the chat template may have written already.

        Returns:
            Whether the text ends in an assistant's turn that the template opened; whether the begin token is
            to be left to the text; and what the answer begins with.
        """
        marks = self.template.marks()
        is_asked = bool(marks.prompt) and text.endswith(marks.prompt)
        is_chat = is_asked or (bool(marks.opening) and marks.opening in text)
        if not is_chat or not any(token in marks.opening + marks.prompt for token in self.control_tokens):
            return False, False, ""
        begins = (self._tokenizer.bos_token, "bos_token")
        writes_bos = any(begin and begin in source for begin in begins for source in self.template.sources)
        return True, not writes_bos, marks.prefill if is_asked else ""

    def _find_turn_end(self, marks: TurnMarks) -> tuple[int, ...]:
        """The tokens behind an assistant's turn, up to the one that ends it; empty if there is none."""
        ids = self._encoder.inside(marks.end)
        for place, number in enumerate(ids):
            if self._ends(number):
                return tuple(ids[: place + 1])
        # Not behind the last turn: some end one only where another follows, or by its very header.
        ids = self._encoder.inside(marks.following)
        for place, number in enumerate(ids):
            if self._ends(number):
                is_end = number in self.named_eos_ids or number == self._own_eos
                return tuple(ids[: place + 1]) if is_end else ()
        return ()

    def _ends(self, number: int) -> bool:
        """Whether a token could be the end of a turn: one that the model names, or that is no plain text."""
        if number in self.named_eos_ids or number == self._own_eos or number in self._special:
            return True
        return number in self._added.values() and bool(self._tokenizer.decode([number]).strip())

    def _is_control(self, text: str, number: int) -> bool:
        """Whether a token steers the model: special ones, and those that the chat template writes."""
        if number in self._special or number in self.eos_ids:
            return True
        return bool(text.strip()) and any(text in source for source in self.template.sources)
