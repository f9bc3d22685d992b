"""Units: which words behind a number are one, and which of them are the same.

Left out on purpose: what a unit is worth. 2 km is not 2000 m.
"""

from __future__ import annotations

import re

TELLING = {
    "or", "and", "not", "no", "nor", "but", "if", "when", "unless", "except", "either", "neither", "between",
    "factorial", "squared", "cubed", "choose", "mod", "modulo", "plus", "minus", "times", "over", "root",
    "divided", "log", "ln", "sin", "cos", "tan", "than", "least", "most", "below", "above", "under", "to",
    "from",
}  # fmt: skip  # as many as a line holds
"""Words that make something else of a number beside them."""
_CANON = {
    **dict.fromkeys(["$", "dollar", "usd", "buck"], "dollar"),
    **dict.fromkeys(["%", "percent", "pct", "percentage"], "percent"),
    **dict.fromkeys(["degree", "deg"], "degree"),
    **dict.fromkeys(["m", "meter", "metre"], "m"),
    **dict.fromkeys(["cm", "centimeter", "centimetre"], "cm"),
    **dict.fromkeys(["mm", "millimeter", "millimetre"], "mm"),
    **dict.fromkeys(["km", "kilometer", "kilometre"], "km"),
    **dict.fromkeys(["g", "gram"], "g"),
    **dict.fromkeys(["kg", "kilogram", "kilo"], "kg"),
    **dict.fromkeys(["mg", "milligram"], "mg"),
    **dict.fromkeys(["lb", "pound"], "pound"),
    **dict.fromkeys(["oz", "ounce"], "ounce"),
    **dict.fromkeys(["ft", "foot", "feet"], "foot"),
    **dict.fromkeys(["in", "inch", "inche"], "inch"),
    **dict.fromkeys(["yd", "yard"], "yard"),
    **dict.fromkeys(["mi", "mile"], "mile"),
    **dict.fromkeys(["s", "sec", "second"], "second"),
    **dict.fromkeys(["min", "minute"], "minute"),
    **dict.fromkeys(["h", "hr", "hour"], "hour"),
    **dict.fromkeys(["day"], "day"),
    **dict.fromkeys(["week", "wk"], "week"),
    **dict.fromkeys(["month"], "month"),
    **dict.fromkeys(["year", "yr"], "year"),
    **dict.fromkeys(["l", "liter", "litre"], "l"),
    **dict.fromkeys(["ml", "milliliter", "millilitre"], "ml"),
    **dict.fromkeys(["cent", "¢"], "cent"),
    **dict.fromkeys(["€", "euro", "eur"], "euro"),
    **dict.fromkeys(["£", "gbp"], "sterling"),
}


def unit_name(behind: str, power: str = "") -> str:
    """The unit that words behind a number name, where it is one that is known by several names."""
    unit = unit_of("", behind)
    return f"{unit}^{power}" if unit and power else unit


def is_unit(words: str) -> bool:
    """Whether words behind a number leave it as it is."""
    found = re.findall("[a-z]+", words.lower())
    return len(found) <= 8 and not TELLING.intersection(found) and "more" not in found and "less" not in found


def unit_of(before: str, behind: str) -> str:
    """The unit of a number between two texts, where it is one that is known by several names."""
    if before.rstrip(" -(").endswith("$"):
        return "dollar"
    words = re.findall(r"[A-Za-z]+|[%¢€£$]", behind)
    if not words:
        return ""
    power = {"square": "^2", "sq": "^2", "cubic": "^3"}.get(words[0].lower(), "") if len(words) > 1 else ""
    word = words[1 if power else 0].lower()
    unit = _CANON.get(word) or _CANON.get(word.removesuffix("s"), "")
    return unit + power if unit else ""
