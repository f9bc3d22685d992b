"""Arithmetic with what an expression comes to: its elements in `field`, and what people see in it.

Arithmetic of plain numbers that was left undone (16 - 3, 2 * 8, the root of 16) is noted, since it is no
answer where the value is asked for. Left out on purpose: how an expression is written (`expressions`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from rs_aligner.answers import field
from rs_aligner.answers.tokens import Unread

_POINTS = 2
_MOST_BITS = 20_000  # of an integer that is computed
_NOTHING: frozenset[str] = frozenset()
_REAL: dict[str, Callable[..., float]] = {
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")},
    **{f"arc{name}": getattr(math, f"a{name}") for name in ("sin", "cos", "tan")},
    "ln": math.log,
    "log_2": math.log2,
    "log_10": math.log10,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "factorial": lambda n: math.gamma(n + 1),
    "binomial": lambda n, k: math.gamma(n + 1) / (math.gamma(k + 1) * math.gamma(n - k + 1)),
}
_NUMBERS = {"pi": math.pi, "e": math.e}


@dataclass(frozen=True, slots=True)
class Value:
    """What an expression comes to.

    Attributes:
        at: its elements at the points.
        exact: at the points as rational numbers, where it is one there and not too long.
        letters: what it depends on.
        real: at one more point, or None; only for signs.
        complete: whether other elements are other expressions.
        undone: arithmetic of plain numbers that was left to the reader: `sum`, `product`, `other`.
        kind: `integer`, `number`, `ten` (a power of ten), or `more`.
    """

    at: tuple[field.Element, ...]
    exact: tuple[Fraction, ...] | None
    letters: frozenset[str] = _NOTHING
    real: complex | None = None
    complete: bool = True
    undone: frozenset[str] = _NOTHING
    kind: str = "more"

    @property
    def constant(self) -> Fraction | None:
        """The rational number that it is."""
        return self.exact[0] if self.exact is not None and not self.letters else None


def constant(value: Fraction, kind: str = "number") -> Value:
    """A rational number."""
    return Value((field.rational(value),) * _POINTS, (value,) * _POINTS, real=_float(value), kind=kind)


def _float(value: Fraction) -> complex | None:
    try:
        return complex(float(value))
    except OverflowError:
        return None


def opaque(name: str, *args: Value) -> Value:
    """A function of which nothing is known."""
    at = tuple(field.symbol(name, *(arg.at[point] for arg in args)) for point in range(_POINTS))
    letters = frozenset().union(*(arg.letters for arg in args)) | {f"\\{name}"}
    undone = frozenset().union(*(arg.undone for arg in args))
    return Value(at, None, letters, _real_of(name, args), complete=False, undone=undone)


def _real_of(name: str, args: tuple[Value, ...]) -> complex | None:
    """A function's value where letters are real numbers; None where it has none, or is not known."""
    function = _REAL.get(name)
    numbers = [arg.real for arg in args]
    if function is None or any(number is None or abs(number.imag) > 1e-12 for number in numbers):
        return None
    try:
        return complex(function(*(number.real for number in numbers if number is not None)))
    except (ValueError, OverflowError, ZeroDivisionError):
        return None


def letter(name: str) -> Value:
    """A letter: a number drawn for it; i is the root of -1."""
    if name == "i":
        return Value(((0, 1),) * _POINTS, None, frozenset({"i"}), 1j)
    at = tuple(field.letter(name, point) for point in range(_POINTS))
    exact = None if name in _NUMBERS else tuple(Fraction(number) for number in at)
    real = complex(_NUMBERS.get(name, 0.0) or field.real(name))
    return Value(tuple((number % field.P, 0) for number in at), exact, frozenset({name}), real)


def _both(a: Value, b: Value, **known: object) -> Value:
    complete = a.complete and b.complete
    value = Value((), None, a.letters | b.letters, complete=complete, undone=a.undone | b.undone)
    return replace(value, **known)  # type: ignore[arg-type]  # fields of the dataclass, by name


def _exact(a: Value, b: Value, how: str) -> tuple[Fraction, ...] | None:
    if a.exact is None or b.exact is None:
        return None
    pairs = list(zip(a.exact, b.exact, strict=True))
    if how == "+":
        found = tuple(x + y for x, y in pairs)
    elif how == "*":
        found = tuple(x * y for x, y in pairs)
    else:
        found = tuple(x / y for x, y in pairs)
    return found if all(_bits(x) < _MOST_BITS for x in found) else None


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def add(a: Value, b: Value) -> Value:
    """The sum."""
    undone = {"sum"} if a.constant is not None and b.constant is not None else set()
    real = None if a.real is None or b.real is None else a.real + b.real
    at = tuple(field.add(x, y) for x, y in zip(a.at, b.at, strict=True))
    return _both(a, b, at=at, exact=_exact(a, b, "+"), real=real, undone=a.undone | b.undone | undone)


def negative(a: Value) -> Value:
    """With the other sign."""
    exact = None if a.exact is None else tuple(-x for x in a.exact)
    # Taken from 0, so that -4 has no imaginary part of -0, on which side of a root's cut it would lie.
    real = None if a.real is None else 0 - a.real
    return replace(a, at=tuple(map(field.negative, a.at)), exact=exact, real=real)


def multiply(a: Value, b: Value) -> Value:
    """The product; of a number and a power of ten it is a number."""
    known = a.constant is not None and b.constant is not None
    undone = {"product"} if known and b.kind != "ten" else set()
    real = None if a.real is None or b.real is None else a.real * b.real
    at = tuple(field.times(x, y) for x, y in zip(a.at, b.at, strict=True))
    kind = "number" if known and b.kind == "ten" else "more"
    return _both(
        a, b, at=at, exact=_exact(a, b, "*"), real=real, undone=a.undone | b.undone | undone, kind=kind
    )


def divide(a: Value, b: Value) -> Value:
    """The quotient; of two integers it is a number."""
    known = a.constant is not None and b.constant is not None
    plain = a.kind == "integer" and b.kind == "integer"
    undone = {"product"} if known and not plain else set()
    real = None if a.real is None or not b.real else a.real / b.real
    at = tuple(field.times(x, field.inverse(y)) for x, y in zip(a.at, b.at, strict=True))
    kind = "number" if plain else "more"
    return _both(
        a, b, at=at, exact=_exact(a, b, "/"), real=real, undone=a.undone | b.undone | undone, kind=kind
    )


def raised(base: Value, exponent: Value) -> Value:
    """A power, or a root where the exponent is a fraction."""
    real = _real_power(base.real, exponent.real)
    whole = exponent.exact is not None and all(x.denominator == 1 for x in exponent.exact)
    fixed = exponent.constant
    if whole:
        assert exponent.exact is not None
        at = tuple(field.power(x, int(n)) for x, n in zip(base.at, exponent.exact, strict=True))
        exact = None
        if fixed is not None and base.exact is not None:
            exact = _whole_power(base.exact, int(fixed))
            if exact is None and base.constant is not None:
                raise Unread("a power that nobody writes out")
        undone = base.undone | exponent.undone
        if fixed is not None and (
            base.constant in (-1, 0, 1) or (base.constant and fixed < 0 and base.kind != "integer")
        ):
            undone |= {"other"}  # 10^4 is how numbers are written, 1^2 is not
        is_ten = base.constant == 10 and base.kind == "integer" and exponent.kind == "integer"
        return _both(
            base, exponent, at=at, exact=exact, real=real, undone=undone, kind="ten" if is_ten else "more"
        )
    if exponent.exact is None and not exponent.letters:
        raise Unread("a power that nobody writes out")
    if fixed is not None and base.constant is not None and fixed.denominator <= 12:
        return raised(radical(base, fixed.denominator), constant(Fraction(fixed.numerator), "integer"))
    return replace(opaque("power", base, exponent), real=real)


def radical(base: Value, degree: int) -> Value:
    """A root."""
    if degree % 2 and base.real is not None and base.real.imag == 0 and base.real.real < 0:
        real = _real_power(-base.real, complex(1 / degree))
        real = None if real is None else -real
    else:
        real = _real_power(base.real, complex(1 / degree))
    number = base.constant
    if number is None or _bits(number) > 200:
        value = opaque(f"root {degree}", base)
        return replace(value, real=real)
    element, exact, complete = field.root(number, degree)
    letters = base.letters if exact is not None else base.letters | {f"\\root {degree}"}
    return Value(
        (element,) * _POINTS,
        None if exact is None else (exact,) * _POINTS,
        letters,
        real,
        complete=base.complete and complete,
        undone=base.undone | ({"other"} if exact is not None else set()),
    )


def _whole_power(numbers: tuple[Fraction, ...], exponent: int) -> tuple[Fraction, ...] | None:
    if any(_bits(x) * abs(exponent) > _MOST_BITS for x in numbers):
        return None
    return tuple(x**exponent for x in numbers)


def _real_power(base: complex | None, exponent: complex | None) -> complex | None:
    if base is None or exponent is None:
        return None
    try:
        return base**exponent
    except (OverflowError, ZeroDivisionError):
        return None
