r"""Where the final answer of a text stands: in `\boxed{}`, behind `####`, after "the answer is", at its end.

A box wins over a mark, since models that were taught to box write Markdown headings, too. `####` counts as
GSM8K writes it: alone-standing, with the answer on its line. What hedges (`\boxed{3}` or 4), was not finished
(a box that is not closed) or goes on behind the box (`\boxed{3}\sqrt{2}`) is found, but comes to nothing.
Left out on purpose: what an answer means (`alone`, `expressions`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

MARK = "####"
"""Stands before a final answer."""

Where = Literal["box", "mark", "phrase", "formula"]
_LONGEST = 400  # characters of an answer that is found by a phrase or at the end
_MOST_BOXES = 9
_JOINED = 60  # characters between two boxes that are given as one answer

_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]*(\{|[^\s{}]{1,100})")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(?![-+$\\.\d])\S", re.MULTILINE)
_NUMBERING = re.compile(r"(?:\*\*)?\d+[.):](?:\s|$)")
_BETWEEN = re.compile(
    r"[\s$]*(?:\\[)\]])?[\s$]*(?:,|;|&|\band\b|\\text\{\s*(?:,|and)\s*\}|\\q?quad|\\[,; ]|[\s$])*"
    r"(?:\\[(\[])?[\s$]*(?:[A-Za-z](?:_\w|_\{\w+\})?\s*=\s*)?[\s$]*"
)
_OR = re.compile(r"\b(?:or|versus|vs)\b")
_HEDGE = re.compile(
    r"(?:[\s$.,;(]|\\[)\]]|\\text\{\s*)*\b(?:or|maybe|alternatively)\b(?! less| more| so\b)", re.IGNORECASE
)
_GOES_ON = re.compile(
    r"[\w^!({]|\s*\\(?:sqrt|pi|frac|dfrac|cdot|times|pm|mp|div)(?![A-Za-z])|\s*[-+*/^]\s*[\w\\(]"
)
_PHRASE = re.compile(
    r"(?:\banswers?|\bsolutions?|\bchoice|\boption|\bresult)(?:\s+(?:to|of|for)\s[^.\n:]{1,60}?)?"
    r"(?:\s*\*\*)?\s*(?::|\bis\b|\bare\b|=)(?:\s|:|\*\*)*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer as it was given.

    Attributes:
        text: as it stands there; empty if it comes to nothing.
        where: how it was found.
    """

    text: str
    where: Where

    @property
    def is_formula(self) -> bool:
        """Whether a lone letter is a variable in it."""
        return self.where in ("box", "formula")


def marked_answer(text: str) -> Said | None:
    r"""What is in the last `\boxed{}`, else what follows the last `####`; None where there is neither."""
    boxed = _boxed(text) if "\\boxed" in text or "\\fbox" in text else None
    if boxed is not None:
        return Said(boxed, "box")
    marked = after_mark(text) if MARK in text else None
    return None if marked is None else Said(marked, "mark")


def ending(text: str) -> Said | None:
    """The answer that a text without a mark ends with: behind "the answer is", or a formula; None without."""
    tail = text[-_LONGEST:]
    phrases = list(_PHRASE.finditer(tail))
    if phrases:
        said = tail[phrases[-1].end() :].strip()
        if said and "\n" not in said:
            return Said(_without_stop(said), "phrase")
    return last_formula(tail)


def after_mark(text: str) -> str | None:
    """The line behind the last `####` that is no heading."""
    end = len(text)
    while (place := text.rfind(MARK, 0, end)) >= 0:
        end = place
        begin = place + len(MARK)
        if text[place - 1 : place] == "#":
            end = len(text[:place].rstrip("#"))  # more than four: a heading
            continue
        line, _, rest = text[begin:].partition("\n")
        if line.strip() and not _is_heading(line.strip(), rest, text):
            return line
    return None


def _is_heading(line: str, rest: str, text: str) -> bool:
    if not rest.strip():
        return False  # GSM8K's is the last line
    if _NUMBERING.match(line) or re.match(r"[*_]*[A-Za-z]", line):
        return True
    return _HEADING.search(text) is not None and re.search(r"[A-Za-z]{2,}", line) is not None


def _boxed(text: str) -> str | None:
    """What the last box holds, or the last ones if several are given together; empty if it is no answer."""
    last = _box_before(text, len(text))
    if last is None:
        return None
    place, content, close = last
    behind = text[close : close + _JOINED]
    if text[place - 1 : place].isdigit() or _GOES_ON.match(behind) or _HEDGE.match(behind):
        return ""
    sign = re.search(r"-[\s$]{0,4}$", text[max(0, place - 6) : place])
    if sign and not re.search(r"[\w)}]\s*$", text[max(0, place - 20) : place - len(sign[0])]):
        content = "-" + content
    if re.match(r"\s?\\?%", behind):
        content += "%"
    contents = [content]
    while (box := _box_before(text, place)) is not None and len(contents) < _MOST_BOXES:
        gap = text[box[2] : place]
        if len(gap) > _JOINED or "\n\n" in gap:
            break
        if _OR.search(gap) and not re.search(r"[.!?]\s", gap):
            contents.append(f"{box[1]} \\text{{ or }} {contents.pop()}")
        elif gap.strip("$ \n") and _BETWEEN.fullmatch(gap):
            contents.append(box[1])
        else:
            break
        place = box[0]
    return ", ".join(reversed(contents))


def _box_before(text: str, end: int) -> tuple[int, str, int] | None:
    """The last box that starts before `end`: where, what it holds (nothing if it is not closed), its end."""
    while (place := max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))) >= 0:
        match = _BOX.match(text, place)
        if match is not None:
            content, close = _content(text, match)
            return place, content, close
        end = place
    return None


def _content(text: str, match: re.Match[str]) -> tuple[str, int]:
    """What a box holds and where it ends; empty if it is not closed."""
    if match[1] != "{":
        bare = re.match(r"-?\d[\d.,]*\d|-?\d|[A-Za-z]", match[1])
        return (bare[0], match.start(1) + bare.end()) if bare else ("", match.end())
    depth = 1
    for brace in re.compile(r"\\.|[{}]").finditer(text, match.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[match.end() : brace.start()], brace.end()
    return "", len(text)


def last_formula(text: str) -> Said | None:
    """The formula that a text ends with."""
    text = text[-_LONGEST:].rstrip(" \n\t.!*")
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.endswith(closing):
            inner = text[: -len(closing)]
            said = inner[inner.rfind(opening) + len(opening) :].strip() if opening in inner else ""
            return Said(said, "formula") if said else None
    return None


def _without_stop(text: str) -> str:
    return re.sub(r"[\s.!*]+$", "", text) if not text.endswith("!") else text.rstrip("* ")
