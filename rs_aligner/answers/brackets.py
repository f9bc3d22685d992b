"""Brackets in an answer's tokens: what is inside of them, and what stands between separators outside of them.

Left out on purpose: what the parts come to (`reading`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rs_aligner.answers.tokens import Token


def bare(pieces: list[Token]) -> list[Token]:
    """Without a pair of brackets around a single thing, and braces around all."""
    while len(pieces) > 1 and pieces[0].text in ("(", "{") and closes(pieces) == len(pieces) - 1:
        inside = pieces[1:-1]
        if any(token.kind == "separator" for token in inside) and pieces[0].text == "(":
            return pieces
        pieces = inside
    return pieces


def closes(pieces: Sequence[Token]) -> int:
    """Where the bracket at the beginning is closed."""
    depth = 0
    for place, token in enumerate(pieces):
        depth += (token.kind == "open") - (token.kind == "close")
        if depth == 0:
            return place
    return -1


def split(pieces: Sequence[Token], at: Callable[[Token], bool]) -> tuple[list[list[Token]], list[Token]]:
    """Parts between tokens outside of brackets, and those tokens."""
    parts: list[list[Token]] = [[]]
    marks: list[Token] = []
    depth = 0
    for token in pieces:
        depth += (token.kind == "open") - (token.kind == "close")
        if depth == 0 and at(token):
            parts.append([])
            marks.append(token)
        else:
            parts[-1].append(token)
    return parts, marks
