r"""From the text of an answer to its form: an expression, a relation, an interval, a list, a matrix, words.

`read` never fails: what is not understood in every part is a text, equal to nothing but itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import replace

from rs_aligner.answers.brackets import bare, split
from rs_aligner.answers.expressions import evaluate
from rs_aligner.answers.forms import Form, up_to_scale
from rs_aligner.answers.texts import normalised, plain_words
from rs_aligner.answers.tokens import Token, Unread, tokens
from rs_aligner.answers.units import is_unit, unit_name
from rs_aligner.answers.values import add, negative

LONGEST = 400
"""Characters of an answer that is read."""
_MOST_PARTS = 24


def read(text: str) -> Form:
    """What an answer is."""
    text = text.strip().rstrip(".").strip()
    return _read(text) if len(text) <= LONGEST else Form("text", " ".join(text.split()))


@functools.lru_cache(4096)
def _read(text: str) -> Form:
    if plain := plain_words(text):
        return Form("text", plain)
    try:
        return _whole(text)
    except (Unread, RecursionError):
        return Form("text", normalised(text))


_MATRIX = re.compile(
    r"\s*(?:\\left\s*[(\[|]\s*)?\\begin\{([pbvBV]?matrix|array)\}(?:\s*\{[^{}]*\})?(.*?)\\end\{\1\}"
    r"(?:\s*\\right\s*[)\]|])?\s*",
    re.DOTALL,
)


def _whole(text: str) -> Form:
    text = text.replace("\\\\begin", "\\begin").replace("\\\\end", "\\end")
    matrix = _MATRIX.fullmatch(text.strip("$ \n"))
    if matrix:
        return _matrix(matrix[1], matrix[2])
    _, _, rest = text.partition("=")
    if matrix := _MATRIX.fullmatch(rest.strip("$ \n")):
        return _matrix(matrix[1], matrix[2])
    exact, is_about, about = re.sub(r"\\(?:approx|simeq)(?![A-Za-z])|≈", "≈", text).partition("≈")
    if is_about:
        return _about(exact, about)
    return _form(tokens(text))


def _about(exact: str, about: str) -> Form:
    """What is exact of an answer and its approximation, if that is one."""
    if not exact.strip():
        return _form(tokens(about))
    form, near = _form(tokens(exact)), _form(tokens(about))
    one, other = form.value, near.value
    if one is None or other is None or one.real is None or other.real is None:
        raise Unread("an approximation")
    if abs(one.real - other.real) > 0.01 * abs(one.real):
        raise Unread("an approximation that is far away")
    return form


def _matrix(environment: str, content: str) -> Form:
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", content) if row.strip()]
    cells = [[_expression(tokens(cell)) for cell in row.split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) > 1 or len(cells) * len(cells[0]) > 64:
        raise Unread("a matrix")
    kind = "determinant" if environment[0] in "vV" else "matrix"
    return Form(kind, f"{len(cells)} x {len(cells[0])}", tuple(cell for row in cells for cell in row))


def _form(pieces: list[Token]) -> Form:
    """An answer from its tokens."""
    pieces = bare(pieces)
    if not pieces:
        raise Unread("nothing")
    parts, marks = split(pieces, lambda t: t.kind == "separator")
    if len(parts) > 1:
        return _listed(parts, marks)
    chain, relations = split(pieces, lambda t: t.kind == "relation")
    if len(chain) > 1:
        return _related(chain, [relation.text for relation in relations])
    if any(token.text in ("pm", "mp") and token.kind == "command" for token in pieces):
        return _listed([_signs(pieces, "+"), _signs(pieces, "-")], [])
    union, _ = split(pieces, lambda t: t.kind == "command" and t.text == "cup")
    if len(union) > 1:
        return Form("union", "", tuple(_form(part) for part in union))
    if enclosed := _enclosed(pieces):
        return enclosed
    return _expression(pieces)


def _signs(pieces: Sequence[Token], sign: str) -> list[Token]:
    other = "-" if sign == "+" else "+"
    signs = {"pm": Token("operator", sign, latex=sign), "mp": Token("operator", other, latex=other)}
    return [signs.get(token.text, token) if token.kind == "command" else token for token in pieces]


def _listed(parts: list[list[Token]], marks: Sequence[Token]) -> Form:
    """Several answers; `x = 1 or x = 2` are 1 and 2 under a name."""
    forms: list[Form] = []
    for part in parts:
        if not part:  # "a, and b"
            continue
        form = _form(part)
        forms += form.parts if form.kind == "list" else (form,)
    if len(forms) < 2 or len(forms) > _MOST_PARTS:
        raise Unread("a list")
    if any(form.kind == "text" for form in forms):
        raise Unread("words in a list")
    names = {form.name for form in forms if form.name}
    if len(names) == 1 and forms[0].name:
        forms = [_named(form, "") for form in forms]
        return Form("list", "", tuple(forms), name=names.pop())
    if any(form.kind == "relation" for form in forms):
        connective = "or" if any(mark.text == "or" for mark in marks) else "and"
        return Form("list", connective, tuple(forms))
    return Form("list", "", tuple(forms))


def _related(chain: list[list[Token]], relations: list[str]) -> Form:
    if any(not part for part in chain) or len(chain) > 4:
        raise Unread("a relation without a side")
    if relations[0] == "in" and len(chain) == 2:
        form = _form(chain[1])
        return _named(form, "".join(token.text for token in chain[0]))
    if set(relations) == {"="}:
        return _equation(chain)
    if "=" in relations or "in" in relations:
        raise Unread("relations of several kinds")
    if any(token.kind == "separator" for part in chain for token in part):
        raise Unread("a relation between lists")
    sides = [_expression(part) for part in chain]
    found = [_relation(a, how, b) for a, how, b in zip(sides, relations, sides[1:], strict=False)]
    interval = _between(chain, sides, relations)
    keys = tuple(sorted(found, key=lambda form: form.how))
    return Form("relation", " ".join(form.how for form in keys), (interval,) if interval else (), name="")


def _equation(chain: list[list[Token]]) -> Form:
    left = chain[0]
    last = _form(chain[-1])
    name = "".join(token.text for token in left)
    if _is_name(left):
        return _named(last, name)
    sides = [_form(part) for part in chain]
    if all(side.value is not None and side.value.constant is not None for side in sides):
        return last  # 5 + 3 = 8
    if len(chain) > 2 or last.value is None or sides[0].value is None:
        raise Unread("an equation")
    difference = add(sides[0].value, negative(last.value))
    return Form("equation", up_to_scale(difference))


def _named(form: Form, name: str) -> Form:
    return replace(form, name=name)


def _is_name(pieces: Sequence[Token]) -> bool:
    """Whether these tokens are what an answer is called: x, f(x), AB, (x, y), a_1, lambda."""
    kinds = {token.kind for token in pieces}
    if not pieces or not kinds <= {"letter", "open", "close", "separator", "mark", "number", "word"}:
        return False
    if pieces[0].kind == "word":
        return all(token.kind == "word" for token in pieces)
    text = "".join(token.text for token in pieces)
    return re.fullmatch(
        r"[A-Za-z]+'*(?:_\{?\w+\}?)?(?:\([\w,]+\))?|\([A-Za-z](?:[,;][A-Za-z])+\)", text
    ) is not None and (
        len(pieces) <= 2 or pieces[0].text == "(" or "_" in text or "(" in text or text.isupper()
    )


def _relation(left: Form, how: str, right: Form) -> Form:
    """A relation whose text is the same for what follows from it by turning it round or scaling it."""
    assert left.value is not None
    assert right.value is not None
    difference = add(left.value, negative(right.value))
    real = difference.real
    if how == "!=":
        return Form("relation", f"!= {up_to_scale(difference)}")
    if not difference.complete or real is None or abs(real.imag) > 1e-9 or abs(real.real) < 1e-9:
        raise Unread("a relation whose sign is not known")
    if real.real < 0:
        how = how.translate(str.maketrans("<>", "><"))
    return Form("relation", f"{how} {up_to_scale(difference)}")


def _between(chain: list[list[Token]], sides: list[Form], relations: list[str]) -> Form | None:
    """The interval that a relation of one letter to numbers is."""
    infinity = [
        _expression([Token("letter", "infty")]),
        _expression([Token("operator", "-"), Token("letter", "infty")]),
    ]
    if "!=" in relations:
        return None
    if len(chain) == 2 and _is_name(chain[1]) and not _is_name(chain[0]):
        sides, chain = sides[::-1], chain[::-1]
        relations = [relations[0].translate(str.maketrans("<>", "><"))]
    if len(chain) == 2 and _is_name(chain[0]):
        closed = "=" in relations[0]
        if relations[0][0] == "<":
            return Form("interval", "(]" if closed else "()", (infinity[1], sides[1]))
        return Form("interval", "[)" if closed else "()", (sides[1], infinity[0]))
    if len(chain) == 3 and _is_name(chain[1]) and relations[0][0] == relations[1][0]:
        if relations[0][0] == ">":
            sides, relations = sides[::-1], relations[::-1]
        return Form(
            "interval",
            ("[" if "=" in relations[0] else "(") + ("]" if "=" in relations[1] else ")"),
            (sides[0], sides[2]),
        )
    return None


def _enclosed(pieces: list[Token]) -> Form | None:
    """A pair, a point, an interval or a set; None if the tokens are not one bracket."""
    opening = pieces[0].text
    if pieces[0].kind != "open":
        return None
    closing = pieces[-1].text
    parts, marks = split(pieces[1:-1], lambda t: t.kind == "separator")
    if opening == r"\{":
        if closing != r"\}" or any(mark.text == "or" for mark in marks) or not any(parts):
            raise Unread("a set")
        forms = [_form(part) for part in parts]
        return Form("set", "", tuple({form.key: form for form in forms}.values()))
    if closing not in (")", "]") or len(parts) < 2 or any(mark.text in ("or", "and") for mark in marks):
        return None
    return Form("interval", opening + closing, tuple(_form(part) for part in parts))


def _expression(pieces: list[Token]) -> Form:
    pieces, unit = _unit(list(pieces))
    if not pieces:
        raise Unread("nothing")
    value = evaluate(pieces)
    latex = " ".join(
        f"{{{token.latex}}}"
        if before is not None and before.text == "^" and token.kind == "number"
        else token.latex
        for before, token in zip([None, *pieces], pieces, strict=False)
    )
    has_decimals = any(token.kind == "number" and "." in token.text for token in pieces)
    return Form("expression", value=value, unit=unit, latex=latex, has_decimals=has_decimals)


def _unit(pieces: list[Token]) -> tuple[list[Token], str]:
    """Without words behind, which are the unit, and degrees of a number that stands alone."""
    words: list[str] = []
    power = ""
    if [token.kind for token in pieces[-3:]] == ["word", "operator", "number"] and pieces[-2].text == "^":
        power = pieces[-1].text
        del pieces[-2:]
        if power not in ("2", "3"):
            raise Unread("a power of no unit")
    while pieces and pieces[-1].kind == "word":
        words.insert(0, pieces.pop().text)
    if words and not is_unit(" ".join(words)):
        raise Unread("words that are no unit")
    is_number = all(
        token.kind in ("number", "operator", "mark", "open", "close") or token.text == "frac"
        for token in pieces
    )
    if pieces and pieces[-1].text == "°" and is_number:
        pieces.pop()
        return pieces, "degree"
    return pieces, unit_name(" ".join(words), power)
