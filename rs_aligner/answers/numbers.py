"""Numbers in text, read as people read them.

`find_numbers` reads thousands separators (1,234 or 12,34,567 or 1 234 or 1.234,5), decimals, fractions (1/2,
3 1/2, LaTeX), signs, percent, currencies, units, powers of ten and "million". What has no single value that
everyone would agree on is found too, but without a value, and so equals nothing: an unevaluated sum (16 - 3),
a range (3-4), a choice (17 or 18), a time (3:30), 2 hours 30 minutes, malformed groups (1,2345), roots.
Left out on purpose: numbers in words, and rounding: 3.33 is not 10/3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rs_aligner.answers.plain import UNREADABLE

_MOST_DIGITS = 100
_CURRENCY = "$€£¥₹"

_START = re.compile(
    r"(?<![A-Za-z_^\dπ])(?<!\d[.,])"
    rf"(?:{UNREADABLE}|\d{{1,3}}(?: \d{{3}})+(?![\d,'])(?:\.\d+)?|\.?\d(?:[.,'_]?\d)*)"
)
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_GROUPED = re.compile(
    r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?: \d{3})+|\d{1,3}(?:['_]\d{3})+)(?:\.\d+)?"
)
_EUROPEAN = re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}\.\d{3},\d{1,2}|\d+,\d{1,2}|0,\d+")
# White space is one space, and a new line ends what belongs together.
_EXPONENT = re.compile(r"[eE]([-+]?\d{1,3})(?![\w.])")
_TEN_TO = re.compile(r" ?[x\u00d7*] ?10 ?\^ ?(-?\d{1,3})(?!\d)")
_MIXED = re.compile(r"(?: | and )(\d{1,6}) ?/ ?(\d{1,6})(?![\d/.,]*\d)")
_DENOMINATOR = re.compile(r" ?[/\u2044] ?(\d[\d,]*(?:\.\d+)?)(?!\d)")
_CENTS = re.compile(r" ?(?:dollars?)?,? ?(?:and )?(\d{1,2}) ?(?:cents?\b|¢)")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "m": 6, "b": 9}
_SCALE = re.compile(r" ?-?(hundred|thousand|million|billion|trillion)\b|(k)(?![\w/])", re.IGNORECASE)
_MONEY_SCALE = re.compile(r" ?([mb])n?(?![\w/])", re.IGNORECASE)
_PERCENT = re.compile(r" ?(?:%|per ?cent\b|percent(?:age)?\b|pct\b)", re.IGNORECASE)
# An operator and one more operand; dates, times and powers.
_GOES_ON = re.compile(
    rf" ?(?:[-+*\u00d7\u00f7x/^:]|\b(?:plus|minus|times|over|divided by)\b) ?-?[{_CURRENCY}(]? ?\.?\d[\d.,]*"
    r"| ?\*? ?(?:π|pi\b)",
    re.IGNORECASE,
)
_UNITS = [
    ("weeks?|wks?", "days?"),
    ("years?|yrs?", "months?|weeks?|days?"),
    ("months?", "weeks?|days?"),
    ("days?", "hours?|hrs?"),
    ("hours?|hrs?|h", "minutes?|mins?|m"),
    ("minutes?|mins?|m", "seconds?|secs?|s"),
    ("feet|foot|ft", "inch(?:es)?|in"),
    ("pounds?|lbs?", "ounces?|oz"),
]
_COMPOUND = re.compile(
    "|".join(rf" ?(?:{big})\.?,? ?(?:and )?\d[\d.]* ?(?:{small})\b" for big, small in _UNITS),
    re.IGNORECASE,
)
_CHOICE = re.compile(rf"[ %]*[A-Za-z]*,? ?\bor\b ?(?:[a-z]+ )?-?[{_CURRENCY}]?", re.IGNORECASE)
_BETWEEN = re.compile(rf"\bbetween -?[{_CURRENCY}]?$", re.IGNORECASE)
_AND = re.compile(rf"[ %]*[A-Za-z]*,? ?\b(?:and|or)\b ?-?[{_CURRENCY}]?", re.IGNORECASE)
_SIGN = re.compile(
    rf"(?P<sign>[-+±]|\b(?:minus|negative))(?P<gap> ?)[{_CURRENCY}(]* ?$|[{_CURRENCY}] ?(?P<inner>[-+±])$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number found in a text.

    Attributes:
        value: None if it has no single value.
        percent: whether it is followed by a percent sign.
        start: where it starts in the text, its sign left out.
        end: where it ends, its percent sign included.
    """

    value: Fraction | None
    percent: bool
    start: int
    end: int

    def same_as(self, reference: Number) -> bool:
        """Whether somebody who expects `reference` would take this for it."""
        if self.value is None or reference.value is None:
            return False
        if self.percent == reference.percent:
            return self.value == reference.value
        if reference.percent:  # 50 % is expected, and 50 or 0.5 said
            return self.value in (reference.value, reference.value / 100)
        # 50 % is said: of an expected 0.5 it is the same, of an expected 50 the unit.
        return self.value == (reference.value * 100 if abs(reference.value) < 1 else reference.value)


def find_numbers(text: str, *, in_prose: bool) -> list[Number]:
    """All numbers of a text that `plain_text` has prepared, in their order.

    Args:
        text: where to look.
        in_prose: whether `- 18` at the start of a line is an item of a list; else it is a negative number.
    """
    numbers: list[Number] = []
    position = 0
    while match := _START.search(text, position):
        number = _read(text, match, in_prose)
        if numbers and _is_choice(text, numbers[-1], number):
            before = numbers.pop()
            if before.value != number.value:
                number = Number(None, number.percent, before.start, number.end)
        numbers.append(number)
        position = number.end
    return numbers


def _is_choice(text: str, first: Number, second: Number) -> bool:
    """Whether two numbers are offered to choose from: 17 or 18, between 17 and 18."""
    if _BETWEEN.search(text[: first.start]):
        return _AND.fullmatch(text, first.end, second.start) is not None
    return _CHOICE.fullmatch(text, first.end, second.start) is not None


def _read(text: str, match: re.Match[str], in_prose: bool) -> Number:
    """One number, from its first digit to what belongs to it behind."""
    start, end = match.span()
    value = _digits(match[0])
    before = text[:start]
    is_money = before.rstrip(" -").endswith(tuple(_CURRENCY))
    whole = value is not None and match[0].isdigit()

    def follows(pattern: re.Pattern[str]) -> re.Match[str] | None:
        nonlocal end
        found = pattern.match(text, end)
        if found:
            end = found.end()
        return found

    if value is not None:
        if power := follows(_EXPONENT) or follows(_TEN_TO):
            value *= Fraction(10) ** int(power[1])
        elif whole and (mixed := _MIXED.match(text, end)) and 0 < int(mixed[1]) < int(mixed[2]):
            value, end = value + Fraction(int(mixed[1]), int(mixed[2])), mixed.end()
        elif denominator := follows(_DENOMINATOR):
            below = _digits(denominator[1])
            value = value / below if below else None
    if value is not None and (scale := follows(_SCALE) or (is_money and follows(_MONEY_SCALE)) or None):
        value *= 10 ** _SCALES[next(filter(None, scale.groups())).lower()]
    cents = _CENTS.match(text, end)
    if value is not None and cents and (is_money or "dollar" in cents[0]):
        value, end = value + Fraction(int(cents[1]), 100), cents.end()
    percent = bool(follows(_PERCENT))
    while follows(_COMPOUND) or follows(_GOES_ON):
        value = None
    sign = _sign(before, in_prose)
    return Number(None if value is None or sign is None else sign * value, percent, start, end)


def _sign(before: str, in_prose: bool) -> int | None:
    """1 or -1, or None for plus-minus."""
    match = _SIGN.search(before)
    if match is None:
        return 1
    sign = (match["sign"] or match["inner"]).lower()
    ahead = before[: len(before) - len(match[0])] if match["sign"] else ""
    if len(sign) == 1 and ahead[-1:].isalnum():
        return 1  # a hyphen: COVID-19
    if in_prose and sign == "-" and match["gap"] and not ahead.rpartition("\n")[2].strip():
        return 1  # an item of a list
    return {"+": 1, "±": None}.get(sign, -1)


def _digits(text: str) -> Fraction | None:
    """The value of digits with separators; None if they are grouped as no one would."""
    if len(text) > _MOST_DIGITS:
        return None
    if _PLAIN.fullmatch(text):
        return Fraction(text)
    if _GROUPED.fullmatch(text):
        return Fraction(re.sub("[, '_]", "", text))
    if _EUROPEAN.fullmatch(text):
        return Fraction(text.replace(".", "").replace(",", "."))
    return None
