r"""A text with LaTeX, Markdown and typography reduced to what numbers are written with.

`plain_text` keeps what says that a number is not alone: commands that are not known to be harmless (`\sqrt`,
`\log`, ...) become `UNREADABLE`, so that a number beside them is not taken for the whole answer. Each step
looks first whether the text has its characters at all, because most texts have few of them.
Left out on purpose: what formulas mean (`expressions`).
"""

from __future__ import annotations

import re
import unicodedata

UNREADABLE = "\ufffd"
"""Stands for a formula that is not a number."""

_TEXT_COMMANDS = (
    "text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|boldsymbol|bm"
)
WRAPPED = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
"""Words in a formula; group 1 is what they say."""
# Commands that say nothing about the number beside them.
_HARMLESS = (
    "qquad|quad|displaystyle|textstyle|left|right|bigl?|bigr|Bigl?|Bigr|implies|iff|Rightarrow|rightarrow|to|therefore|because"
    "|dots|ldots|cdots|angle|triangle|begin|end|hspace|vspace|hfill|newline|noindent|checkmark|blacksquare|square|qed"
    "|longrightarrow|Longrightarrow|boxed|fbox|color|large|Large|small"
)
_LATEX = [
    (re.compile(r"\\[$%#&]"), lambda m: m[0][1]),
    (re.compile(r"(?:\{\s*,\s*\}|, ?\\!)\s*(?=\d)"), lambda m: ","),
    (re.compile(r"\\[!()\[\]]|\\(?:left|right|displaystyle)(?![A-Za-z])"), lambda m: ""),
    (re.compile(r"\\[,;:> ]|~|\\q?quad(?![A-Za-z])"), lambda m: " "),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])"), lambda m: " degrees"),
    (re.compile(r"\\times(?![A-Za-z])"), lambda m: "\u00d7"),
    (re.compile(r"\\cdot(?![A-Za-z])"), lambda m: "*"),
    (re.compile(r"\\div(?![A-Za-z])"), lambda m: "\u00f7"),
    (re.compile(r"\\pm(?![A-Za-z])"), lambda m: "±"),
    (re.compile(r"\\pi(?![A-Za-z])"), lambda m: "π"),
    (re.compile(r"\\(?:approx|simeq)(?![A-Za-z])"), lambda m: "≈"),
    (re.compile(r"\\(?:leq?|leqslant)(?![A-Za-z])"), lambda m: "≤"),
    (re.compile(r"\\(?:geq?|geqslant)(?![A-Za-z])"), lambda m: "≥"),
    (re.compile(r"\\(?:neq?)(?![A-Za-z])"), lambda m: "≠"),
    (re.compile(r"\\lt(?![A-Za-z])"), lambda m: "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), lambda m: ">"),
    (WRAPPED, lambda m: f" {m[1]} "),
    (re.compile(r"\^\s*\{\s*(-?\d+)\s*\}"), lambda m: f"^{m[1]}"),
    (
        re.compile(r"(\d?)\\[dtc]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}"),
        lambda m: _over(*m.groups()),
    ),
    (re.compile(r"(\d?)\\[dtc]?frac\s*(\d)\s*(\d)(?!\d)"), lambda m: _over(*m.groups())),
]
_LATEX_LAST = [
    (re.compile(rf"\\(?:{_HARMLESS})(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:[dtc]?frac|sqrt)(?:\[[^\]]*\])?\s*(?:\{[^{}]*\}\s*){0,2}"), UNREADABLE),
    (re.compile(r"\\[A-Za-z]+"), UNREADABLE),
]
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_TYPOGRAPHY = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u2010": "-",
        "\u2011": "-",
        "\u2019": "'",
        "\u2044": "/",
        "√": UNREADABLE,
    }
)
_UNIT_POWER = re.compile(r"([A-Za-z]{2}|(?<![A-Za-z\d])[mshLl]) ?\^-?\d+")
_CODES = re.compile(r"\b(?:USD?|EUR|GBP|JPY|INR|AUD|CAD|CHF|US|Rs)\.?\s?[$]?\s?(?=-?\d)")
_CODE_LETTERS = ("US", "EUR", "GBP", "JPY", "INR", "AUD", "CAD", "CHF", "Rs")
_CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")  # of GSM8K's solutions
_TAGS = re.compile(r"</?[A-Za-z][\w ]{0,40}>|<\|[^|<>]{0,40}\|>")
_ARROWS = re.compile(r"[-=]+>")


def plain_text(text: str) -> str:
    """The text as `numbers.find_numbers` reads it: white space is one space, line ends are kept."""
    if not text.isascii():
        text = keyboard(text)
    text = re.sub(r"[^\S\n]+", " ", text)
    if "\n" in text:
        text = re.sub(r" ?\n\s*", "\n", text)
    if "*" in text or "_" in text or "`" in text:
        text = re.sub(r"\*\*|__|`|(?<!\w)_|_(?!\w)", "", text)
    if ">" in text:
        text = _ARROWS.sub(" ", _TAGS.sub(" ", _CALCULATION.sub("= ", text)))
    if "\\" in text:
        before = ""
        while "\\" in text and text != before:  # from the inside out
            before = text
            for pattern, replacement in _LATEX:
                text = pattern.sub(replacement, text)
        for pattern, mark in _LATEX_LAST:
            text = pattern.sub(mark, text)
    elif "~" in text or "{" in text:
        text = re.sub(r"\{\s*,\s*\}", ",", text).replace("~", " ")
    if any(code in text for code in _CODE_LETTERS):
        text = _CODES.sub("$", text)
    if "^" in text:
        text = re.sub(r"\^\s*\{\s*(-?\d+)\s*\}", r"^\1", text)
        text = _UNIT_POWER.sub(r"\1", text)
    return re.sub(r"[^\S\n]+", " ", text)


def keyboard(text: str) -> str:
    """Other digits, signs and spaces as those of a keyboard."""
    text = "".join(_vulgar(char) for char in text)
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    return unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHY)


def _vulgar(char: str) -> str:
    """One half as 1/2, apart from what stands before it."""
    if char > "\u007f" and unicodedata.decomposition(char).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", char).replace("\u2044", "/")
    return char


def _over(before: str, above: str, below: str) -> str:
    """A LaTeX fraction as a/b; behind a whole number with a space, as mixed numbers are written."""
    return f"{before} {above}/{below}" if before else f"{above}/{below}"
