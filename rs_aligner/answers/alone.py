r"""Numbers that are the whole answer: `whole_number` of an answer that was marked, `last_number` of prose.

A number counts only where nothing is left over but a unit, a currency, a label or `x =`; a letter, a root, a
relation or another operand beside it makes it part of something else, which `expressions` may read.
Left out on purpose: what a unit is worth. 2 km is not 2000 m, and 2 dozen are 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rs_aligner.answers.numbers import Number, find_numbers
from rs_aligner.answers.plain import UNREADABLE, WRAPPED, keyboard, plain_text
from rs_aligner.answers.units import TELLING, unit_of

_LONGEST = 300  # characters of an answer that is read
_WINDOW = 100  # characters of prose before a number that say what it belongs to
_BEHIND = 80

_DIGITS = r"(\d{1,3}(?:,\d{3})+|\d{1,60})(\.\d{1,60})?"
_SIMPLE = re.compile(rf"[ \t\n]*([-+]?)(\\?\$)?([-+]?){_DIGITS}[ \t]*\.?[ \t\n]*")
# How most answers in prose end.
_SIMPLE_END = re.compile(
    r"(?<![A-Za-z])(?:is|are|equals|has|have|makes|answer:) "
    rf"(\$?)(-?){_DIGITS}((?: [a-z]{{3,14}}){{0,2}})[.\s]{{0,9}}\Z"
)
# How most stand in the middle of it.
_AMONG_WORDS = re.compile(
    rf"(?<![A-Za-z])([a-z]{{2,14}}) (\$?){_DIGITS} ([a-z]{{3,14}})(?![A-Za-z'-])[^\d]*\Z"
)
_NOT_WORDS = re.compile(r"[\d\\<>=+*/^|]")

_PAIR = re.compile(r"\d+,\d{1,2}")  # in a formula two numbers, in prose a decimal comma
_NAME = r"[A-Za-z]\w*'?(?:\([A-Za-z\d ,]{1,20}\))?"
_POWER = re.compile(r"[A-Za-z}] ?\^ ?\{?([23])\}?[\s.)}$]*\Z")  # of a unit at the end
_LABEL = re.compile(rf"[ (]*(?:{_NAME}|[A-Za-z][A-Za-z ,.:'()-]*)?[ :)]*")
_ARITHMETIC = re.compile(r"(?:[-\d\s.,+*\u00d7\u00f7/^()$€£¥₹%]|(?<=[\d ])x(?=[\d ]))*")
_WORDS_BEFORE = re.compile(r"[\s$€£¥₹(\[*\"'`~+:.-]*(?:[A-Za-z]{2,}+[\s$€£¥₹(\[*\"'`~+:.,-]*|[Aa] )*")
_UNIT_WORD = r"[A-Za-z]++(?:\d(?!\d))?"
_UNITS_BEHIND = re.compile(
    rf"[\s\-]*(?:(?:{_UNIT_WORD}|¢)(?:[\s/*.\-]+|\s*(?=\())?|/\s*)*(?:\([A-Za-z][A-Za-z ,.-]+\))?"
    r"[\s.,;:)\]*\"'`$€£¥₹]*"
)
_TELLING_BEFORE = TELLING - {"to", "from", "over", "under", "and"} | {"sqrt"}
_SCALING = {
    "hundred",
    "thousand",
    "million",
    "billion",
    "trillion",
    "percent",
    "per",
    "dozen",
    "cents",
    "mil",
}
_ENOUGH = TELLING | _SCALING
_UNIT_LETTERS = frozenset("mgshLlNJWVKCFaA")  # a and A: an article
_GLUED = re.compile(
    r"(?:st|nd|rd|th|kg|mg|g|km|cm|mm|nm|mi|mph|kph|lbs?|oz|ft|in|yd|hrs?|h|mins?|secs?|ms|am|pm|AM|PM|ml|mL|L|kW|kWh"
    r"|kB|MB|GB|TB|Hz|kHz|MHz|cc|pts?|USD|EUR|GBP|cents?|dollars?|degrees?|meters?|metres?|hours?|days?|minutes?"
    r"|seconds?|miles?|feet|inches|pounds?)(?![A-Za-z])"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that is a whole answer.

    Attributes:
        number: its value is never None.
        unit: what it counts, of the units that are known; empty where none is.
    """

    number: Number
    unit: str = ""

    def same_as(self, reference: Quantity) -> bool:
        """Whether somebody who expects `reference` would take this for it."""
        if self.unit and reference.unit and self.unit != reference.unit:
            return False
        if (self.unit and reference.number.percent) or (self.number.percent and reference.unit):
            return False
        return self.number.same_as(reference.number)


def whole_number(text: str, *, formula: bool) -> Quantity | None:
    """The number that an answer is, if it is one and nothing else.

    Args:
        text: an answer, as it was marked.
        formula: whether it stands in a formula or is a reference, so that a lone letter is a variable: 7 m
            and 4k are no numbers there, except in `text{}`.
    """
    if simple := _simple(text, in_prose=False):
        return simple
    if len(text) > _LONGEST or not any(char.isnumeric() for char in text):
        return None
    wrapped = " ".join(WRAPPED.findall(text)) if formula and "\\" in text else ""
    plain = plain_text(text).strip()
    line = plain.partition("\n")[0] if not formula else " ".join(plain.split())
    parts = re.split("[=≈]", line)
    last = max((place for place, part in enumerate(parts) if re.search(r"\d", part)), default=None)
    if last is None:
        return None
    answer = parts.pop(last)
    if not all(_LABEL.fullmatch(part) or _ARITHMETIC.fullmatch(part) for part in parts):
        return None
    numbers = find_numbers(answer, in_prose=False)
    if len(numbers) != 1 or numbers[0].value is None:
        return None
    [number] = numbers
    before, behind = answer[: number.start], answer[number.end :]
    allowed = frozenset(re.findall("[A-Za-z]+", wrapped)) if formula else _UNIT_LETTERS
    digits = answer[number.start : number.end]
    if formula and ((digits[-1:] in "kK" and not wrapped) or _PAIR.fullmatch(digits)):
        return None
    if "," in digits and re.search(r"[(\[{] ?$", before):
        return None  # a pair, or an interval
    if not _is_label(before) or not _is_unit(behind, allowed):
        return None
    unit = unit_of(before, behind)
    power = _POWER.search(keyboard(text)) if unit and ("^" in text or not text.isascii()) else None
    return Quantity(number, f"{unit}^{power[1]}" if power else unit)


def last_number(text: str) -> Quantity | None:
    """The last number of prose, if it stands for itself."""
    last = _last_digit(text)
    if last < 0:
        return None
    if simple := _simple(text, in_prose=True) or _among_words(text[max(0, last - _BEHIND) : last + _BEHIND]):
        return simple
    start = max(0, last - _WINDOW)
    window = plain_text(text[start : last + _BEHIND])
    numbers = find_numbers(window, in_prose="\n" in text.strip())
    if not numbers or numbers[-1].value is None:
        return None
    number = numbers[-1]
    if start and number.start == 0:
        return None  # it is longer than anyone writes
    before, behind = window[: number.start], window[number.end :]
    if _is_part(before, behind) or (len(numbers) > 1 and _is_listed(window, numbers[-2], number, behind)):
        return None
    known = re.match(r" ?-?([A-Za-z%¢€£$]+)", behind)
    return Quantity(number, unit_of(before, known[0] if known else ""))


def _simple(text: str, *, in_prose: bool) -> Quantity | None:
    """The number of a text that is as most are; None does not say that there is none."""
    if match := _SIMPLE.fullmatch(text):
        sign, money, inner, digits, decimals = match.groups()
        if sign and inner:
            return None
        return _quantity(digits, decimals, is_negative="-" in (sign, inner), unit="dollar" if money else "")
    tail = text[-_WINDOW:]
    match = _SIMPLE_END.search(tail) if in_prose else None
    if match is None or _CHOOSING.search(tail):
        return None
    money, minus, digits, decimals, words = match.groups()
    if words and not _ENOUGH.isdisjoint(words.split()):
        return None
    return _quantity(digits, decimals, is_negative=bool(minus), unit=unit_of(money, words))


def _among_words(window: str) -> Quantity | None:
    """The last number of prose, if words are all that stands around it; None does not say that it is none."""
    match = _AMONG_WORDS.search(window)
    if match is None:
        return None
    word, money, digits, decimals, unit = match.groups()
    before = window[: match.start()]
    if word in _ENOUGH or word in _TELLING_BEFORE or word == "negative" or unit in _ENOUGH:
        return None
    if _NOT_WORDS.search(before) or _CHOOSING.search(before) or before.endswith("root "):
        return None
    return _quantity(digits, decimals, is_negative=False, unit=unit_of(money, unit))


def _quantity(digits: str, decimals: str | None, *, is_negative: bool, unit: str) -> Quantity:
    value = (
        Fraction(digits.replace(",", "") + decimals) if decimals else Fraction(int(digits.replace(",", "")))
    )
    return Quantity(Number(-value if is_negative else value, False, 0, 0), unit)


def _last_digit(text: str) -> int:
    """Where the last digit of a text is; -1 without one."""
    last = max(map(text.rfind, "0123456789"))
    if text.isascii():
        return last
    return next((n for n in range(len(text) - 1, last, -1) if text[n].isnumeric()), last)


def _is_label(before: str) -> bool:
    if not before.strip():
        return True
    if not _WORDS_BEFORE.fullmatch(before):
        return False
    return not _TELLING_BEFORE.intersection(re.findall("[a-z]+", before.lower()))


def _is_unit(behind: str, letters: frozenset[str]) -> bool:
    if not behind.strip():
        return True
    if (
        behind[0].isalpha()
        and not _GLUED.match(behind)
        and not letters.intersection(re.findall("^[A-Za-z]+", behind))
    ):
        return False
    if not _UNITS_BEHIND.fullmatch(behind):
        return False
    words = re.findall("[A-Za-z]+", behind)
    if TELLING.intersection(word.lower() for word in words):
        return False
    return all(len(word) > 1 or word in letters or word == "a" for word in words)


_CHOOSING = re.compile(r"\b(?:or|between|either|not)\b")
_OPERAND = re.compile(
    rf"(?:(?<![A-Za-z'])[A-Za-z]|[)\]}}π{UNREADABLE}]) ?[-+*/^\u00d7\u00f7±] ?[$€£¥₹(]*$"
    rf"|{UNREADABLE} ?[({{]?[-+]?$"
    r"|[^\n=-][<>≤≥≠]=? ?[-+$€£¥₹]*$|^[<≤≥≠]=? ?[-+$€£¥₹]*$"
    r"|\b(?:log|ln|sin|cos|tan|cot|sec|csc|sqrt|exp|lim|square root of|cube root of) ?\(? ?$"
    r"|(?<![A-Za-z])[A-Za-z]\($|\{ ?-?$|\| ?-?$|\d ?[*+] ?$|!=? ?-?$|\bnot ?(?:=|equal(?: to)?)? ?$"
)
_CONTINUES = re.compile(
    rf" ?[-+*/^\u00d7\u00f7±] ?(?:[A-Za-z](?![A-Za-z'])(?! [a-z]{{2,}})|\(|\{{|{UNREADABLE})"
    rf"| ?{UNREADABLE}| ?[<>≤≥≠]|\^|\((?:[^)\n]{{0,20}}[-+*/^=]|[A-Za-z]\)|\d)| ?\||\}}|_"
)
_VARIABLE = re.compile(r" [B-Zb-z](?![A-Za-z'])")
_CHOSEN_FROM = re.compile(
    r"(?i)[\s%]*(?:[A-Za-z$€£]+ ){0,2}\(?(?:,? ?\bor\b|/)"
    r"(?: (?:maybe|perhaps|possibly|is|it is|even|[a-z] =))* ?(?:[A-Za-z] ?= ?)?[-$€£¥₹]*"
)
_LISTED = re.compile(r" ?(?:[,;&]|,? ?\b(?:and|or)\b|) ?(?:[A-Za-z] ?= ?)?[-$€£¥₹]*")


def _is_part(before: str, behind: str) -> bool:
    """Whether a number of prose belongs to something larger."""
    if _OPERAND.search(before) or _CONTINUES.match(behind):
        return True
    if behind[:1].isalpha():
        return _GLUED.match(behind) is None
    variable = _VARIABLE.match(behind)
    return variable is not None and variable[0][1] not in _UNIT_LETTERS


def _is_listed(text: str, first: Number, second: Number, behind: str) -> bool:
    """Whether the last two numbers are given side by side, so that neither is the answer."""
    between = text[first.end : second.start]
    if _CHOSEN_FROM.fullmatch(between):
        return True
    ends = re.fullmatch(r"[\s.!)\]}$*]*", behind)
    return ends is not None and bool(between.strip("-$ ")) and _LISTED.fullmatch(between) is not None
