"""Judges that know the right answer: the response's final answer against the data row's.

Three of them. `final_answer` finds the answer in whatever a model says and reads numbers and mathematics as
people do. `choice` finds the option of a multiple-choice question. `exact_answer` accepts nothing but the
answer, alone or behind `####`: where anything else in the response would be learnt along with it.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal

from rs_aligner.answers import is_right, marked_answer
from rs_aligner.answers.choices import chosen, expected, options_of
from rs_aligner.answers.library import Library, Undecided
from rs_aligner.reward.judges.base import BadSetting, Metadata, Value, content_hash
from rs_aligner.rollout import ScoreFailure

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
    return [float(_is_exact(response, str(_reference(row, answer_key)))) for response, row in pairs]


class FinalAnswer:
    r"""Reward 1.0 if the answer that the response comes to is the reference's, else 0.0.

    It is what is in the last `\boxed{}`, else what follows `####` on its line, else the last number, or what
    the response ends with. Numbers are equal as people see it: 1,234.50 dollars is 1234.5, 50% is 0.5,
    `\frac{1}{2}` is 0.5; they count where nothing is left over but a unit, a currency or `x =`. Relations,
    intervals, pairs, sets, matrices, roots, powers, polynomials and words are compared as what they are.
    Where functions may be the same in other words, `math-verify` is asked, in a process of its own.

    Args:
        answer_key: name of the reference in the data row, with or without a solution.
        match: `exact` wants the very text of the reference there, but for white space.
        time_limit: seconds that `math-verify` may take over a row; what takes longer has no score.

    Raises:
        BadSetting: another `match`.
    """

    def __init__(
        self,
        answer_key: str = "answer",
        match: Literal["normalised", "exact"] = "normalised",
        time_limit: float | None = 5.0,
    ) -> None:
        if match not in ("normalised", "exact"):
            raise BadSetting(f"judge.kwargs.match is {match!r}: should be 'normalised' or 'exact'")
        self._key, self._is_exact = answer_key, match == "exact"
        self._library = Library(time_limit)
        version = importlib.metadata.version("math-verify")
        self.fingerprint = content_hash("final_answer", answer_key, match, version)

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """A value a row.

        Raises:
            ValueError: a row without a reference.
        """
        return [self._score(*row) for row in zip(prompts, responses, metadata, strict=True)]

    def close(self) -> None:
        """End the process of `math-verify`."""
        self._library.close()

    def _score(self, prompt: str, response: str, row: Metadata) -> Value:
        reference = str(_reference(row, self._key))
        if self._is_exact:
            return float(_same_text(response, reference))
        try:
            return float(is_right(response, reference, prompt, self._library))
        except Undecided as error:
            return ScoreFailure(str(error))


def choice(
    prompts: list[str],
    responses: list[str],
    metadata: list[Metadata],
    *,
    answer_key: str = "answer",
    choices_key: str = "choices",
    first_index: int = 0,
) -> list[float]:
    r"""Reward 1.0 if the option that the response comes to is the reference's, else 0.0.

    It is a letter, or an option's text, in the last `\boxed{}`, behind `####`, behind "the answer is", or
    alone: C, (C), `\text{(C)}`, C. Paris. Two letters are no answer, nor is a letter with another option's
    text.

    Args:
        prompts: not looked at.
        responses: what is judged.
        metadata: the data rows. `metadata[answer_key]` is the letter, the option's text, or a number that
            counts options; `metadata[choices_key]` a list of texts, a mapping of letters to texts, or
            `{"text": [...], "label": [...]}`; without it letters are compared.
        answer_key: name of the reference in the data row.
        choices_key: name of the options in the data row.
        first_index: what a number as the reference counts the first option as.

    Raises:
        ValueError: a row without a reference, or one that names no option.
    """
    return [
        float(_is_chosen(response, row, answer_key, choices_key, first_index))
        for response, row in zip(responses, metadata, strict=True)
    ]


def _is_chosen(response: str, row: Metadata, answer_key: str, choices_key: str, first_index: int) -> bool:
    try:
        options = options_of(row.get(choices_key) if choices_key in row else None)
        label = expected(_reference(row, answer_key), options, first_index)
    except ValueError as error:
        raise ValueError(f"row {row.get('id', '(no id)')}: {error}") from None
    return chosen(response, options) == label


def _reference(row: Metadata, key: str) -> Any:
    if row.get(key) is None:
        raise ValueError(
            f"row {row.get('id', '(no id)')} has no {key!r} to compare with; "
            "name the reference's key with judge.kwargs.answer_key"
        )
    return row[key]


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
