r"""An expression's value, from its tokens.

A recursive descent; what is not understood in every part is not read at all, nor is what people read in two
ways (1/2x, a mixed number before a letter). Left out on purpose: integrals, sums, limits, and whether
functions that are written differently are the same, which `library` finds out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from rs_aligner.answers import values
from rs_aligner.answers.tokens import Token, Unread
from rs_aligner.answers.values import Value

_MOST_DEPTH = 40


def evaluate(pieces: list[Token]) -> Value:
    """The value of an expression.

    Raises:
        Unread: it is not understood in every part, or has no value.
    """
    parser = _Parser(pieces)
    try:
        value = parser.sum()
    except (ZeroDivisionError, OverflowError, RecursionError) as error:
        raise Unread(str(error)) from None
    if parser.place < len(pieces):
        raise Unread(pieces[parser.place].text)
    return value


class _Parser:
    """One pass over the tokens of an expression."""

    def __init__(self, pieces: list[Token]) -> None:
        self.pieces, self.place, self.depth = pieces, 0, 0

    def _next(self) -> Token | None:
        return self.pieces[self.place] if self.place < len(self.pieces) else None

    def _is(self, kind: str, *texts: str) -> bool:
        token = self._next()
        return token is not None and token.kind == kind and (not texts or token.text in texts)

    def _take(self) -> Token:
        token = self._next()
        if token is None:
            raise Unread("the end")
        self.place += 1
        return token

    def sum(self) -> Value:
        """Terms with signs."""
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise Unread("nested too deep")
        value = self._signed()
        while self._is("operator", "+", "-"):
            sign = self._take().text
            term = self._product()
            value = values.add(value, values.negative(term) if sign == "-" else term)
        self.depth -= 1
        return value

    def _signed(self) -> Value:
        sign = self._sign()
        value = self._product()
        return values.negative(value) if sign < 0 else value

    def _sign(self) -> int:
        """1 or -1, after any number of signs."""
        sign = 1
        while self._is("operator", "+", "-"):
            if self._take().text == "-":
                sign = -sign
        return sign

    def _product(self) -> Value:
        value, _ = self._implicit()
        while self._is("operator", "*", "/"):
            is_divided, sign = self._take().text == "/", self._sign()
            factor, count = self._implicit()
            if is_divided and count > 1:
                raise Unread("a slash before several factors")
            factor = values.negative(factor) if sign < 0 else factor
            value = values.divide(value, factor) if is_divided else values.multiply(value, factor)
        return value

    def _implicit(self) -> tuple[Value, int]:
        """Factors beside each other: their product and how many they are."""
        before = self._next()
        value, count = self._power(), 1
        while self._begins_factor():
            after = self._next()
            assert before is not None
            assert after is not None
            if after.kind == "number" or (before.kind == "number" and self._is_proper_fraction()):
                raise Unread("numbers beside each other")
            value, count, before = values.multiply(value, self._power()), count + 1, after
        return value, count

    def _begins_factor(self) -> bool:
        if self._is("open") or self._is("letter") or self._is("number") or self._is("function"):
            return True
        return self._is("command", "frac", "sqrt", "binom", "lfloor", "lceil")

    def _is_proper_fraction(self) -> bool:
        if not self._is("command", "frac"):
            return False
        behind = self.pieces[self.place + 1 :]
        if behind and behind[0].kind == "number" and len(behind[0].text) > 1:
            return True  # \frac12
        rest = [token.kind for token in behind if token.text not in "{}"]
        return rest[:2] == ["number", "number"]

    def _power(self) -> Value:
        base = self._postfixed(self._primary())
        if self._is("operator", "^"):
            self._take()
            return self._postfixed(values.raised(base, self._exponent()))
        return base

    def _exponent(self) -> Value:
        sign, value = self._sign(), self._primary()
        if self._is("operator", "^"):
            self._take()
            value = values.raised(value, self._exponent())
        return values.negative(value) if sign < 0 else value

    def _postfixed(self, value: Value) -> Value:
        while self._is("mark"):
            mark = self._next()
            assert mark is not None
            if mark.text == "!":
                value = self._factorial(value)
            elif mark.text in ("°", "%"):
                value = values.multiply(value, values.letter(mark.text))
            else:
                raise Unread(mark.text)
            self._take()
        return value

    def _factorial(self, value: Value) -> Value:
        number = value.constant
        if number is not None and number.denominator == 1 and 0 <= number <= 500:
            found = values.constant(Fraction(math.factorial(int(number))), "more")
            return replace(found, undone=value.undone | {"other"})
        if number is not None:
            raise Unread("a factorial that nobody writes out")
        return values.opaque("factorial", value)

    def _primary(self) -> Value:
        token = self._take()
        match token.kind:
            case "number":
                assert token.value is not None
                if self._is("mark", "_"):
                    return values.letter(f"{token.text}_{self._subscript()}")
                return values.constant(token.value, "integer" if token.value.denominator == 1 else "number")
            case "letter":
                name = token.text
                if self._is("mark", "_"):
                    name += "_" + self._subscript()
                return values.letter(name)
            case "open":
                value = self.sum()
                closing = {"(": ")", "[": "]", "{": "}"}.get(token.text)
                if closing is None or not self._is("close", closing):
                    raise Unread(token.text)
                self._take()
                return value
            case "bar":
                value = self.sum()
                if not self._is("bar"):
                    raise Unread("|")
                self._take()
                return values.opaque("abs", value)
            case "function":
                return self._function(token.text)
            case "command":
                return self._command(token.text)
        raise Unread(token.text)

    def _subscript(self) -> str:
        self._take()
        start = self.place
        if not self._is("open", "{"):
            return self._take().text
        depth = 0
        while True:
            token = self._take()
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0:
                return "".join(t.text for t in self.pieces[start + 1 : self.place - 1])

    def _command(self, name: str) -> Value:
        match name:
            case "frac":
                above = self._argument()
                return values.divide(above, self._argument())
            case "sqrt":
                degree = 2
                if self._is("open", "["):
                    self._take()
                    number = self._take()
                    if number.value is None or not 2 <= number.value <= 12 or not self._is("close", "]"):
                        raise Unread("a root")
                    degree = int(number.value)
                    self._take()
                return values.radical(self._argument(), degree)
            case "binom":
                above, below = self._argument(), self._argument()
                n, k = above.constant, below.constant
                if (
                    n is not None
                    and k is not None
                    and n.denominator == k.denominator == 1
                    and 0 <= k <= n <= 500
                ):
                    return replace(
                        values.constant(Fraction(math.comb(int(n), int(k))), "more"),
                        undone=frozenset({"other"}),
                    )
                if n is not None and k is not None:
                    raise Unread("a binomial that nobody writes out")
                return values.opaque("binomial", above, below)
            case "lfloor" | "lceil":
                value = self.sum()
                if not self._is("command", f"r{name[1:]}"):
                    raise Unread(name)
                self._take()
                return values.opaque(name[1:], value)
        raise Unread(name)

    def _argument(self) -> Value:
        """What a command of LaTeX takes: a group, or one digit or letter."""
        token = self._next()
        if token is not None and token.kind == "number" and len(token.text) > 1 and token.text.isdigit():
            first, rest = token.text[0], token.text[1:]  # \frac12
            self.pieces = [*self.pieces]
            self.pieces[self.place] = replace(token, text=rest, value=Fraction(rest))
            return values.constant(Fraction(first), "integer")
        return self._primary()

    def _function(self, name: str) -> Value:
        if self._is("mark", "_"):
            name += "_" + self._subscript()
        power = None
        if self._is("operator", "^"):
            self._take()
            power = self._exponent()
            if power.constant == -1:
                name, power = f"arc{name}", None
        if self._is("open"):
            argument = self._primary()
        else:
            argument = self._power()
            while self._begins_factor() and not self._is("function") and not self._is("open"):
                argument = values.multiply(argument, self._power())
        value = values.opaque(name, argument)
        return value if power is None else values.raised(value, power)
