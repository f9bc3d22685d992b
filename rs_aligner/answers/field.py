r"""Numbers in which equal expressions have equal values: a finite field with roots of all integers.

An expression is evaluated at letters drawn at random in F(p^2), p a prime of 127 bits drawn at random, with
i^2 = -1. Expressions that are equal by the rules of algebra (expanded or factored, over a root or with a
rational denominator) have the same value there, and others differ but with probability of about 2^-120
(Schwartz, 1980; Zippel, 1979). It costs microseconds, and the value names the answer in a vote. Square roots
of integers are products of those of primes, each a fixed element. Left out on purpose: identities of
functions (sin, log, ...), which get values of their own.
"""

from __future__ import annotations

import functools
import hashlib
import math
from fractions import Fraction

P = 0x7CECA9E601E1FB0BAA1C0D91C61D84AF
ORDER = P * P - 1
"""By which exponents may be reduced."""
Element = tuple[int, int]
"""a + b i, both below P."""

ZERO: Element = (0, 0)
ONE: Element = (1, 0)
_DIVISIBLE = 720720  # what integers that stand for letters are multiples of, so that x/2 is one, too
_TRIED = 5000  # prime factors are looked for up to here


def add(a: Element, b: Element) -> Element:
    """The sum."""
    return (a[0] + b[0]) % P, (a[1] + b[1]) % P


def negative(a: Element) -> Element:
    """What adds up to 0 with it."""
    return -a[0] % P, -a[1] % P


def times(a: Element, b: Element) -> Element:
    """The product."""
    return (a[0] * b[0] - a[1] * b[1]) % P, (a[0] * b[1] + a[1] * b[0]) % P


def inverse(a: Element) -> Element:
    """What gives 1 with it.

    Raises:
        ZeroDivisionError: of 0.
    """
    norm = (a[0] * a[0] + a[1] * a[1]) % P
    if norm == 0:
        raise ZeroDivisionError
    scale = pow(norm, -1, P)
    return a[0] * scale % P, -a[1] * scale % P


def power(a: Element, exponent: int) -> Element:
    """A power; the exponent may be negative and of any size."""
    if a == ZERO:
        if exponent <= 0:
            raise ZeroDivisionError
        return ZERO
    exponent %= ORDER
    if a[1] == 0:
        return pow(a[0], exponent, P), 0
    result = ONE
    while exponent:
        if exponent & 1:
            result = times(result, a)
        a = times(a, a)
        exponent >>= 1
    return result


def rational(value: Fraction | int) -> Element:
    """A rational number."""
    value = Fraction(value)
    return value.numerator % P * pow(value.denominator, -1, P) % P, 0


@functools.lru_cache(4096)
def letter(name: str, point: int) -> int:
    """The integer that stands for a letter, at one of several points."""
    digest = hashlib.blake2b(f"{point}:{name}".encode(), digest_size=12).digest()
    return _DIVISIBLE * (int.from_bytes(digest, "big") | 1)


def symbol(*parts: object) -> Element:
    """An element for whatever has no rules here: the same for the same parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=32).digest()
    return int.from_bytes(digest[:16], "big") % P, int.from_bytes(digest[16:], "big") % P


def real(name: str) -> float:
    """A real number between 0.5 and 2.5 that stands for a letter where signs are looked at."""
    return 0.5 + 2 * int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48


@functools.lru_cache(4096)
def root(value: Fraction, degree: int) -> tuple[Element, Fraction | None, bool]:
    """A root of a rational number.

    Returns:
        Its element; the root itself where it is rational; and whether all rules of such roots hold for the
        element, so that different elements are different numbers.
    """
    if value == 0:
        return ZERO, Fraction(0), True
    # a/b has the root of a b^(n-1) over b.
    radicand = abs(value.numerator) * value.denominator ** (degree - 1)
    outside, rest, complete = Fraction(1, value.denominator), [], True
    for prime, times_in in _factors(radicand):
        whole, left = divmod(times_in, degree)
        outside *= prime**whole
        if left:
            common = math.gcd(left, degree)
            rest.append((prime, left // common, degree // common))
            complete = complete and degree // common == 2 and prime < _TRIED**2
    element = rational(outside)
    for prime, exponent, index in rest:
        element = times(element, power(_prime_root(prime, index), exponent))
    exact: Fraction | None = None if rest else outside
    if value < 0:
        if degree % 2:
            element, exact = negative(element), None if exact is None else -exact
        else:
            element = times(element, (0, 1) if degree == 2 else symbol("root of -1", degree))
            exact, complete = None, complete and degree == 2
    return element, exact, complete


def _prime_root(prime: int, degree: int) -> Element:
    if degree != 2:
        return symbol("root", degree, prime)
    base = pow(prime, (P + 1) // 4, P)  # P is 3 modulo 4
    return (base, 0) if base * base % P == prime % P else (0, pow(P - prime, (P + 1) // 4, P))


def _factors(number: int) -> list[tuple[int, int]]:
    """Prime factors with how often they come; what is left over may be a product of large ones."""
    found, factor = [], 2
    while factor * factor <= number and factor < _TRIED:
        often = 0
        while number % factor == 0:
            number //= factor
            often += 1
        if often:
            found.append((factor, often))
        factor += 1 + (factor > 2)
    if number > 1:
        square = math.isqrt(number)
        found.append((square, 2) if square * square == number else (number, 1))
    return found
