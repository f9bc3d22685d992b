"""Judges that know the right answer: the response's final answer against the data row's.

Two of them. `final_answer` finds the answer in whatever a model says and compares numbers as people do.
`exact_answer` accepts nothing but the answer, alone or behind `####`: where anything else in the response
would be learnt along with it.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

from rs_aligner.answers import is_right, marked_answer
from rs_aligner.reward.judges.base import BadSetting, Metadata

_MARK = re.compile("(?<!#)####(?!#)")  # four: with more it is a heading
_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d{1,3})?", re.ASCII | re.IGNORECASE)


def exact_answer(
    prompts: list[str], responses: list[str], metadata: list[Metadata], *, answer_key: str = "answer"
) -> list[float]:
    """Reward 1.0 if the response's final answer is the reference's, else 0.0.

    The final answer is what follows the last `####`, or the whole text without one. Answers are equal if
    they are the same text with white space normalised, or the same number (commas are separators).

    Args:
        prompts: not looked at.
        responses: what is judged.
        metadata: the data rows; `metadata[answer_key]` is the reference, a text or a number.
        answer_key: name of the reference in the data row.

    Raises:
        ValueError: a row without a reference; the message names its id.
    """
    pairs = zip(responses, metadata, strict=True)
    return [float(_is_exact(response, _reference(row, answer_key))) for response, row in pairs]


def final_answer(
    prompts: list[str],
    responses: list[str],
    metadata: list[Metadata],
    *,
    answer_key: str = "answer",
    match: Literal["normalised", "exact"] = "normalised",
) -> list[float]:
    r"""Reward 1.0 if the answer that the response comes to is the reference's, else 0.0.

    It is what is in the last `\boxed{}`, else what follows `####` on its line, else the last number. Numbers
    are equal as people see it: 1,234.50 dollars is 1234.5, 50% is 0.5, `\frac{1}{2}` is 0.5; they count where
    nothing is left over but a unit, a currency or `x =`. What is no number must be the same text, but for
    case, white space, quotes and a full stop.

    Args:
        prompts: not looked at.
        responses: what is judged.
        metadata: the data rows; `metadata[answer_key]` is the reference, with or without a solution.
        answer_key: name of the reference in the data row.
        match: `exact` wants the very text of the reference there, but for white space.

    Raises:
        ValueError: a row without a reference.
        BadSetting: another `match`.
    """
    if match not in ("normalised", "exact"):
        raise BadSetting(f"judge.kwargs.match is {match!r}: should be 'normalised' or 'exact'")
    right = _same_text if match == "exact" else is_right
    pairs = zip(responses, metadata, strict=True)
    return [float(right(response, _reference(row, answer_key))) for response, row in pairs]


def _reference(row: Metadata, key: str) -> str:
    if row.get(key) is None:
        raise ValueError(
            f"row {row.get('id', '(no id)')} has no {key!r} to compare with; "
            "name the reference's key with judge.kwargs.answer_key"
        )
    return str(row[key])


def _same_text(response: str, reference: str) -> bool:
    said, expected = marked_answer(response), marked_answer(reference)
    response, reference = (
        text if mark is None else mark.text for text, mark in ((response, said), (reference, expected))
    )
    return response.split() == reference.split()


def _is_exact(response: str, reference: str) -> bool:
    response, reference = (" ".join(_MARK.split(text)[-1].split()) for text in (response, reference))
    if response == reference:
        return True
    if not (_NUMBER.fullmatch(response) and _NUMBER.fullmatch(reference)):
        return False
    # Decimal, since long sums that differ in the last digit are equal as floats.
    return Decimal(response.replace(",", "")) == Decimal(reference.replace(",", ""))
