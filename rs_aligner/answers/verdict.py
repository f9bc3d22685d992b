"""Whether a response comes to a reference's answer, and what an answer is called in a vote.

Numbers that stand alone are compared here, in microseconds.
"""

from __future__ import annotations

import functools
import unicodedata

from rs_aligner.answers.alone import Quantity, last_number, whole_number
from rs_aligner.answers.extract import Said, last_formula, marked_answer
from rs_aligner.answers.plain import WRAPPED

_TYPOGRAPHY = " .?\"'$*`_"
_MANY = 4096  # readings that are remembered: the rollouts of a step come to few answers


def is_right(response: str, reference: str) -> bool:
    """Whether the response comes to the reference's answer."""
    expected, number = _expected(reference)
    said = marked_answer(response)
    if number is not None:
        answer = _quantity(response, said)
        return answer is not None and answer.same_as(number)
    text = words(response if said is None else said.text)
    return text != "" and text == words(expected)


def final_answer(text: str) -> str:
    """What a response comes to, as a text that is the same however the answer is written.

    A number is its value (1,234.50 dollars is 2469/2, 50% is 1/2). Without one it is the first line that says
    something, but for case, white space, quotes and a full stop.
    """
    said = marked_answer(text)
    quantity = _quantity(text, said)
    if quantity is None or quantity.number.value is None:
        return words(text if said is None else said.text)
    number = quantity.number
    assert number.value is not None
    return str(number.value / 100 if number.percent else number.value)


@functools.lru_cache(_MANY)
def _expected(reference: str) -> tuple[str, Quantity | None]:
    """The reference's answer, and the number it is."""
    said = marked_answer(reference)
    text = reference if said is None else said.text
    return text, whole_number(text, formula=said is None or said.is_formula)


def _quantity(response: str, said: Said | None) -> Quantity | None:
    """The number that a response comes to."""
    if said is None:
        said = last_formula(response)
        if said is None:
            return last_number(response)
    return _whole(said.text, said.is_formula)


_whole = functools.lru_cache(_MANY)(lambda text, formula: whole_number(text, formula=formula))


def words(text: str) -> str:
    """A text for comparison: the first line that says something, without what is only typography."""
    lines = (" ".join(line.split()).strip(_TYPOGRAPHY) for line in text.lstrip().splitlines())
    line = next(filter(None, lines), "")
    return WRAPPED.sub(r"\1", unicodedata.normalize("NFKC", line)).casefold().strip(_TYPOGRAPHY)
