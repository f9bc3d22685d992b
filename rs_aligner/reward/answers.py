r"""The final answer of a text: what follows `####`, what is in `\boxed{}`, else the last number.

What verifiers compare and what a selection of distinct answers counts. Numbers are read as people read
them (`numbers`). Left out on purpose: whether an answer is right, which only a verifier knows.
"""

from __future__ import annotations

import re
import unicodedata

from rs_aligner.reward.numbers import Number, find_numbers, plain_text

MARK = "####"
"""Stands before a final answer."""

_LIST = re.compile(r"\s*(?:[,;&]|and\b|)\s*[-$€£]*\s*")
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_TYPOGRAPHY = " .!?\"'$*`_"
_BOXED = re.compile(r"(-?)[\s$]{0,4}\\(?:boxed|fbox)\s?(\{|\S{1,100})")
_TAIL = 2000  # characters at the end of a text in which its last number is looked for first


def final_answer(text: str) -> str:
    """What a response comes to, as a text that is the same however the answer is written.

    A number is its value (1,234.50 dollars is 2469/2, 50% is 1/2). Without one it is the first line that says
    something, but for case, white space, quotes and a full stop.
    """
    said = marked_answer(text)
    answer = text if said is None else said
    number = number_of(answer, is_marked=said is not None)
    if number is None or number.value is None:
        return words(answer)
    return str(number.value / 100 if number.percent else number.value)


def marked_answer(text: str) -> str | None:
    r"""What follows the last `####`, or what is in the last `\boxed{}`; None where there is neither."""
    _, mark, after = text.rpartition(MARK)
    boxed = _boxed(after)
    if boxed is not None or not mark:
        return boxed
    return after


def _boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{}`, with a minus sign that stands before it."""
    matches = list(_BOXED.finditer(text))
    if not matches:
        return None
    match = matches[-1]
    sign = "-" if match[1] and not re.search(r"[\w)}]\s*$", text[: match.start()]) else ""
    if match[2] != "{":
        return sign + match[2]
    depth = 1
    for place in range(match.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return sign + text[match.end() : place]
    return sign + text[match.end() :]


def number_of(text: str | None, *, is_marked: bool) -> Number | None:
    """The number that a text comes to, if there is one: the last, but the first of a marked answer."""
    if text is None:
        return None
    text = plain_text(text)
    if not is_marked:
        in_prose = "\n" in text.strip()
        numbers = find_numbers(text[-_TAIL:], in_prose=in_prose)
        if len(numbers) < 2:  # the only one may have been cut
            numbers = find_numbers(text, in_prose=in_prose)
        return numbers[-1] if numbers else None
    for line in text.splitlines():
        for part in reversed(re.split("[=≈]", line)):
            numbers = find_numbers(part, in_prose=False)
            if len(numbers) > 1 and _LIST.fullmatch(part, numbers[0].end, numbers[1].start):
                return Number(None, False, 0, 0)  # several answers are none
            if numbers:
                return numbers[0]
    return None


def words(text: str) -> str:
    """A text for comparison: the first line that says something, without what is only typography."""
    text = _MARKUP.sub(r"\1", unicodedata.normalize("NFKC", text)).casefold()
    lines = (" ".join(line.split()).strip(_TYPOGRAPHY) for line in text.splitlines())
    return next(filter(None, lines), "")
