r"""Multiple choice: which option a text comes to.

A letter counts where it is given as the answer: in a box, behind `####`, behind "the answer is", or alone. So
does an option's text there. Two letters, or a letter with another option's text, are no choice. Left out on
purpose: questions with several right options, and options that are named in the middle of a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rs_aligner.answers.extract import ending, marked_answer
from rs_aligner.answers.plain import WRAPPED, keyboard

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WITHOUT_OPTIONS = _LETTERS[:10]
# (C), C., C), C: Paris, option C, **C**, [C]
_LABELLED = re.compile(
    r"(?:(?:option|choice|answer)s?\s*:?\s*)?(?:[(\[]\s*(?P<inner>[A-Za-z]|\d{1,2})\s*[)\]]|(?P<bare>[A-Za-z]|\d{1,2})(?![\w'&/+-]))"
    r"\s*[.):,;-]*\s*(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_ANOTHER = re.compile(r"\b(?:or|and|nor|not|but|either|neither|both|versus|vs)\b|[&/]", re.IGNORECASE)
_CHOOSES = re.compile(
    r"\b(?:answer|option|choice)s?\b(?:\s+(?:is|are|would be|must be|should be|to choose is))?\s*:?\s*|"
    r"\b(?:i|we|i'd|i'll)\s+(?:choose|pick|select|go with)\s+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Options:
    """What there is to choose from.

    Attributes:
        labels: A, B, ... or what the row names them.
        texts: what each says; empty where the row does not tell.
    """

    labels: tuple[str, ...]
    texts: tuple[str, ...] = ()

    def labelled(self, said: str) -> str | None:
        """The label that a text is, if it is one."""
        return said.upper() if said.upper() in self.labels else None

    def with_text(self, said: str) -> str | None:
        """The label of the only option that says this."""
        found = [
            label for label, text in zip(self.labels, self.texts, strict=False) if _bare(text) == _bare(said)
        ]
        return found[0] if len(found) == 1 and _bare(said) else None


def options_of(choices: Any) -> Options:
    """The options of a data row.

    Args:
        choices: a list of texts, a mapping of labels to texts, `{"text": [...], "label": [...]}`, or None for
            letters only.

    Raises:
        ValueError: something else.
    """
    if choices is None:
        return Options(tuple(_WITHOUT_OPTIONS))
    if isinstance(choices, Mapping) and set(choices) >= {"text", "label"}:
        labels, texts = choices["label"], choices["text"]
    elif isinstance(choices, Mapping):
        labels, texts = list(choices), list(choices.values())
    elif isinstance(choices, Sequence) and not isinstance(choices, str):
        labels, texts = list(_LETTERS[: len(choices)]), list(choices)
    else:
        raise ValueError(
            f"choices should be a list of texts or a mapping of letters to texts, not {choices!r:.60}"
        )
    if not texts or len(labels) != len(texts) or len(texts) > len(_LETTERS):
        raise ValueError(
            f"choices should be 1 to {len(_LETTERS)} texts, each with one label, not {choices!r:.60}"
        )
    return Options(tuple(str(label).strip().upper() for label in labels), tuple(map(str, texts)))


def expected(reference: Any, options: Options, first_index: int = 0) -> str:
    """The label of a reference: a label, an option's text, or a number that counts options.

    Args:
        reference: as the row has it.
        options: of the row.
        first_index: what the first option is counted as.

    Raises:
        ValueError: it names no option.
    """
    if isinstance(reference, int) and not isinstance(reference, bool):
        if 0 <= reference - first_index < len(options.labels):
            return options.labels[reference - first_index]
        raise ValueError(
            f"{reference} counts no option: there are {len(options.labels)}, from {first_index} on"
        )
    said = marked_answer(str(reference))
    text = str(reference) if said is None else said.text
    label = chosen_of(text, options)
    if label is None and text.strip().isdigit() and options.texts:
        return expected(int(text), options, first_index)
    if label is None:
        raise ValueError(f"{reference!r:.60} names none of the options {', '.join(options.labels)}")
    return label


def chosen(response: str, options: Options) -> str | None:
    """The label of the option that a response comes to; None if it comes to none, or to several."""
    said = marked_answer(response)
    if said is not None:
        return chosen_of(said.text, options)
    said = ending(response)
    if said is not None and (label := chosen_of(said.text, options)):
        return label
    phrases = list(_CHOOSES.finditer(response[-400:]))
    if phrases:
        rest = response[-400:][phrases[-1].end() :].partition("\n")[0]
        return chosen_of(rest, options)
    lines = [line for line in response.splitlines() if line.strip()]
    if not lines:
        return None
    first, last = chosen_of(lines[0], options), chosen_of(lines[-1], options)
    return last if first in (None, last) or len(lines[-1].strip(" *()[].")) == 1 else None


def chosen_of(answer: str, options: Options) -> str | None:
    """The label that an answer is, with or without the option's text."""
    text = _unmarked(answer)
    if label := options.with_text(text):
        return label
    match = _LABELLED.fullmatch(text)
    if match is None:
        return None
    said = match["inner"] or match["bare"]
    rest = match["rest"].strip()
    label = options.labelled(said)
    if label is None or (match["bare"] and said.islower() and rest):
        return None  # "a" may be an article
    if not rest:
        return label
    other = options.with_text(rest)
    if other is not None:
        return label if other == label else None
    first = re.split(r"(?<=[.;])\s|,\s*(?:because|since|as)\b", rest)[0]
    if _ANOTHER.match(rest) or re.match(r"[(\[]?[A-Z][)\]]?(?![\w'])", rest):
        return None
    if _ANOTHER.search(first) and re.search(r"(?<![\w'])[(\[]?[A-Z][)\]]?(?![\w'])", first):
        return None
    separated = re.match(r".*?(?:[)\].:,;-]|\s)", text[match.start("inner" if match["inner"] else "bare") :])
    return label if separated else None


def _unmarked(text: str) -> str:
    text = keyboard(WRAPPED.sub(r"\1", text)) if "\\" in text else keyboard(text)
    text = re.sub(r"\\[ ,;:!()\[\]]|\\q?quad|\$|\*\*|__|`|~", " ", text)
    return " ".join(text.split()).strip(" .*_\"'")


def _bare(text: str) -> str:
    return _unmarked(text).casefold().rstrip(".!")
