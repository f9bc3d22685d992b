r"""Whether a response comes to a reference's answer, and what an answer is called in a vote.

Numbers that stand alone are compared in microseconds. Everything else is read by `forms`, and what only a
computer algebra system can decide goes to `library`. An answer that repeats a formula of the prompt, where
the reference has another one, is no answer: else `\boxed{}` around the question would be right.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from rs_aligner.answers import library
from rs_aligner.answers.alone import Quantity, last_number, whole_number
from rs_aligner.answers.extract import Said, ending, last_formula, marked_answer
from rs_aligner.answers.forms import Form, same
from rs_aligner.answers.reading import LONGEST, read
from rs_aligner.answers.texts import words

_MANY = 4096  # readings that are remembered: the rollouts of a step come to few answers
_POWER = re.compile(r"\^|frac|[^\x00-\x7f]")
_NAMED = re.compile(r"[\s$]*([A-Za-z])\s*=")
_FORMULA = re.compile(r"[-+*/^(!]|\\(?:[dtc]?frac|sqrt|binom|cdot|times|int|sum|lim|prod)")


def is_right(response: str, reference: str, prompt: str = "", judge: library.Library | None = None) -> bool:
    """Whether the response comes to the reference's answer.

    Args:
        response: what is judged.
        reference: the answer, or a solution with a marked answer.
        prompt: what was asked; empty where it is not known.
        judge: what decides where reading does not; None for the one of this process.

    Raises:
        Undecided: it took too long to find out.
    """
    expected, number = _expected(reference)
    said = marked_answer(response)
    if number is not None:
        if said is not None and _named_otherwise(said.text, expected):
            return False
        if said is None:
            said = last_formula(response)
            if said is None:
                found = last_number(response)
                return found is not None and found.same_as(number)
        found = _whole(said.text, said.is_formula)
        if found is not None:
            return found.same_as(number)
        if not _POWER.search(said.text):
            return False  # other ways to write a number are none that everyone would agree on
    text = _said(response) if said is None else said.text
    if not text.strip() or _is_copied(text, expected, prompt):
        return False
    return same(read(text), read(expected), (judge or library.shared()).same)


def final_answer(text: str) -> str:
    """What a response comes to, as a text that is the same however the answer is written.

    A number is its value (1,234.50 dollars is 2469/2, 50% is 1/2), an expression its value in a finite field,
    other answers are made of those. Without an answer it is the first line that says something, but for case,
    white space, quotes and a full stop.
    """
    said = marked_answer(text)
    quantity = _quantity(text, said)
    if quantity is not None and quantity.number.value is not None:
        number = quantity.number
        assert number.value is not None
        return str(number.value / 100 if number.percent else number.value)
    said = said or ending(text)
    if said is None:
        return words(text)
    form = read(said.text) if said.text.strip() else Form("text")
    return form.key if form.kind != "text" else words(said.text)


def final_answers(texts: Sequence[str]) -> list[str]:
    """The final answers of texts to be shown: each as the first of those writes it that are the same."""
    shown: dict[str, str] = {}
    return [shown.setdefault(final_answer(text), _shown(text)) for text in texts]


def kind_of(reference: str) -> str:
    """How a reference is read: `number`, or the kind of its form."""
    expected, number = _expected(reference)
    return "number" if number is not None else read(expected).kind


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


def _whole(text: str, formula: bool) -> Quantity | None:
    return _short(text, formula) if len(text) <= LONGEST else None


@functools.lru_cache(_MANY)
def _short(text: str, formula: bool) -> Quantity | None:
    return whole_number(text, formula=formula)


def _named_otherwise(answer: str, reference: str) -> bool:
    """Whether two answers are values of different letters."""
    if "=" not in answer or "=" not in reference:
        return False
    names = [_NAMED.match(text) for text in (answer, reference)]
    return names[0] is not None and names[1] is not None and names[0][1] != names[1][1]


def _said(response: str) -> str:
    """The answer of a response without a mark, where it is no number: at its end, else its first line."""
    said = ending(response)
    if said is not None:
        return said.text
    lines = [line for line in response.splitlines() if line.strip()] or [""]
    return lines[-1] if read(lines[-1]).kind != "text" else lines[0]


def _shown(text: str) -> str:
    answer = final_answer(text)
    said = marked_answer(text) or ending(text)
    if said is None or re.fullmatch(r"-?\d+(?:/\d+)?", answer):
        return answer
    return " ".join(said.text.split())


def _is_copied(text: str, expected: str, prompt: str) -> bool:
    """Whether an answer is a formula of the prompt, and the reference is not."""
    if not prompt or not _FORMULA.search(text):
        return False
    answer, reference, asked = _squeezed(text), _squeezed(expected), _squeezed(prompt)
    return len(answer) > 2 and answer != reference and answer in asked and reference not in asked


@functools.lru_cache(256)
def _squeezed(text: str) -> str:
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    return re.sub(r"\\(?:left|right|displaystyle|[,;!: ])|[\s$]|(?<=\^)\{(\w)\}", r"\1", text)
