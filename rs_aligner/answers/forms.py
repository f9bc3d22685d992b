r"""Kinds of answers, and whether two are the same.

Structure is compared strictly: brackets, order, number of parts, the direction of relations, the names of
letters. Only two expressions with functions, or roots of letters, are left to a judge of expressions that the
caller brings. Left out on purpose: how an answer is read (`reading`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rs_aligner.answers import field
from rs_aligner.answers.expressions import evaluate
from rs_aligner.answers.tokens import Token, Unread
from rs_aligner.answers.values import Value, add, negative

SameExpressions = Callable[[str, str], bool]
"""Whether two expressions in LaTeX are the same, of which the first is the reference."""


@dataclass(frozen=True, slots=True)
class Form:
    """An answer that was read.

    Attributes:
        kind: `expression`, `relation`, `interval` (pairs and points, too), `set`, `list`, `union`, `matrix`,
            `text`.
        how: what else must be equal: brackets, the relation, the connective, the shape, the text.
        parts: what it consists of.
        value: of an expression.
        name: of an answer that was given as `name = ...`.
        unit: of an expression, where it is a known one.
        latex: of an expression.
    """

    kind: str
    how: str = ""
    parts: tuple[Form, ...] = ()
    value: Value | None = None
    name: str = ""
    unit: str = ""
    latex: str = ""
    has_decimals: bool = False

    @property
    def key(self) -> str:
        """A text that is the same for answers that are certainly the same."""
        if self.value is not None:
            if self.value.constant is not None and not self.value.undone:
                return str(self.value.constant)
            undone = "undone " if self.value.undone else ""
            return f"{undone}{'.'.join(f'{a:x}+{b:x}' for a, b in self.value.at[:1])}"
        keys = [part.key for part in self.parts]
        if self.kind in ("set", "list", "union"):
            keys.sort()
        return f"{self.kind} {self.how} ({', '.join(keys)})"


def same(answer: Form, reference: Form, same_expressions: SameExpressions) -> bool:
    """Whether somebody who expects `reference` would take `answer` for it."""
    if answer.name and reference.name and answer.name != reference.name:
        if answer.value is not None and reference.value is not None and reference.value.letters:
            answer, reference = _as_equation(answer), _as_equation(reference)  # y = x and x = y
        if len(answer.name + reference.name) == 2:
            return False
    if answer.kind != reference.kind:
        answer, reference = _alike(answer, reference)
        if answer.kind != reference.kind:
            return False
    if answer.kind == "text":
        return answer.how != "" and answer.how == reference.how
    if answer.value is not None and reference.value is not None:
        return _same_expression(answer, reference, same_expressions)
    if answer.kind == "relation":
        return answer.how == reference.how
    if answer.how != reference.how or len(answer.parts) != len(reference.parts):
        return False
    if answer.kind in ("set", "list", "union"):
        return _same_in_any_order(answer.parts, reference.parts, same_expressions)
    pairs = zip(answer.parts, reference.parts, strict=True)
    return all(same(one, other, same_expressions) for one, other in pairs)


def _same_expression(answer: Form, reference: Form, same_expressions: SameExpressions) -> bool:
    one, other = answer.value, reference.value
    assert one is not None
    assert other is not None
    if answer.unit and reference.unit and answer.unit != reference.unit:
        return False
    if (one.undone and not other.undone) or ("product" in other.undone and not one.undone):
        return False
    if other.constant is not None:  # a value was asked for, and log 9 is none
        return one.constant == other.constant
    if one.at == other.at:
        return True
    if (one.complete and other.complete) or _differ(one.real, other.real):
        return False
    if answer.has_decimals != reference.has_decimals or _variables(one) != _variables(other):
        return False
    return same_expressions(reference.latex, answer.latex)


def _differ(one: complex | None, other: complex | None) -> bool:
    """Whether two values are so far from each other that rounding cannot be why."""
    return one is not None and other is not None and abs(one - other) > 1e-6 * max(1.0, abs(one))


def _variables(value: Value) -> set[str]:
    """The letters proper, without names of functions and constants."""
    return {name for name in value.letters if not name.startswith("\\") and name not in ("e", "pi", "i")}


def _same_in_any_order(
    answers: Sequence[Form], references: Sequence[Form], same_expressions: SameExpressions
) -> bool:
    left = list(references)
    for answer in answers:
        found = next((n for n, other in enumerate(left) if answer.key == other.key), None)
        if found is None:
            found = next((n for n, other in enumerate(left) if same(answer, other, same_expressions)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _alike(answer: Form, reference: Form) -> tuple[Form, Form]:
    """Two answers of different kinds, in one of them if both are ways to say the same."""
    kinds = {answer.kind, reference.kind}
    if kinds == {"set", "list"}:
        return _as("list", answer), _as("list", reference)
    if kinds == {"relation", "interval"}:
        return _interval(answer), _interval(reference)
    if kinds == {"list", "union"}:
        return _union(answer), _union(reference)
    if kinds == {"equation", "expression"}:
        return _as_equation(answer), _as_equation(reference)
    return answer, reference


def _as(kind: str, form: Form) -> Form:
    return Form(kind, "", form.parts, name=form.name)


def _interval(form: Form) -> Form:
    """X > 3 as (3, infinity)."""
    return form.parts[-1] if form.kind == "relation" and form.parts[-1].kind == "interval" else form


def _union(form: Form) -> Form:
    """X < 3 or x > 5 as a union of intervals."""
    parts = [_interval(part) for part in form.parts]
    if form.kind == "list" and form.how == "or" and all(part.kind == "interval" for part in parts):
        return Form("union", "", tuple(parts))
    return form


def _as_equation(form: Form) -> Form:
    """Y = x - 1 as x - y = 1 is read."""
    if form.value is None or re.fullmatch("[A-Za-z]", form.name) is None:
        return form
    try:
        difference = add(evaluate([Token("letter", form.name)]), negative(form.value))
        return Form("equation", up_to_scale(difference))
    except Unread:
        return form


def up_to_scale(value: Value) -> str:
    """A text that is the same for what differs by a number."""
    if not value.complete:
        raise Unread("an equation that is not known in all parts")
    first, second = value.at
    if value.exact is not None and not value.letters:
        return str(value.exact[0])
    if second == field.ZERO:
        return "0"
    ratio = field.times(first, field.inverse(second))
    return f"{ratio[0]:x}+{ratio[1]:x}"
