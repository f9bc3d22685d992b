"""Judges that know the right answer: the response's final answer against the data row's."""

from __future__ import annotations

import re
from decimal import Decimal

from rs_aligner.reward.judges.base import Metadata

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
    rewards = []
    for response, row in zip(responses, metadata, strict=True):
        if row.get(answer_key) is None:
            raise ValueError(
                f"row {row.get('id', '(no id)')} has no {answer_key!r} to compare with; "
                "name the reference's key with judge.kwargs.answer_key"
            )
        rewards.append(float(_same_answer(_final_answer(response), _final_answer(str(row[answer_key])))))
    return rewards


def _final_answer(text: str) -> str:
    """The text after the last `####`, or all of it, with white space normalised."""
    return " ".join(text.rpartition("####")[2].split())


def _same_answer(response: str, reference: str) -> bool:
    if response == reference:
        return True
    if not (_NUMBER.fullmatch(response) and _NUMBER.fullmatch(reference)):
        return False
    # Decimal, since long sums that differ in the last digit are equal as floats.
    return Decimal(response.replace(",", "")) == Decimal(reference.replace(",", ""))
