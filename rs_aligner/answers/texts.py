"""Answers that are words, and what is left of a text that is not read.

Left out on purpose: synonyms, and numbers in words.
"""

from __future__ import annotations

import re
import unicodedata

from rs_aligner.answers.plain import WRAPPED, keyboard

_TYPOGRAPHY = " .?\"'$*`_"
# a, b and a-b, xy-z: letters, not words.
_LETTERS = re.compile(r"[A-Za-z](?:(?:, ?|-)[A-Za-z])+|[A-Za-z]{1,2}(?: ?- ?[A-Za-z]{1,2})+")


def plain_words(text: str) -> str:
    """The text, if it is words and nothing else."""
    bare = WRAPPED.sub(r" \1 ", text) if "\\" in text else text
    bare = _unquoted(bare)
    if not re.fullmatch(r"[^\W\d_][^\W\d_',. -]*(?:[',. -]+[^\W\d_][^\W\d_']*)*", bare):
        return ""
    if " or " in f" {bare.lower()} ":
        return bare.casefold()
    is_pi = "\\" not in text and bare.lower() == "pi"
    if is_pi or all(len(word) == 1 for word in bare.split()) or _LETTERS.fullmatch(bare):
        return ""
    return bare.casefold()


def _unquoted(text: str) -> str:
    text = " ".join(keyboard(text).split()).strip(" \"'`*$_")
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1].strip()
    return text.rstrip(".").strip()


def normalised(text: str) -> str:
    """A text that is not read, but for spacing and case of words."""
    text = re.sub(r"\\[dt]frac", r"\\frac", keyboard(text))
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:| |\(|\)|\[|\])|(?<!\\)\$|~", " ", text)
    text = WRAPPED.sub(lambda match: f" {match[1].casefold()} ", text)
    text = " ".join(text.split()).strip(" .\"'`*")
    return re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", text)


def words(text: str) -> str:
    """A text for comparison: the first line that says something, without what is only typography."""
    lines = (" ".join(line.split()).strip(_TYPOGRAPHY) for line in text.lstrip().splitlines())
    line = next(filter(None, lines), "")
    return WRAPPED.sub(r"\1", unicodedata.normalize("NFKC", line)).casefold().strip(_TYPOGRAPHY)
