"""What an expression comes to: exactly, nearly, what it depends on and what was left to the reader."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from rs_aligner.answers import field
from rs_aligner.answers.expressions import evaluate
from rs_aligner.answers.tokens import Unread, tokens
from rs_aligner.answers.values import Value


def value(text: str) -> Value:
    return evaluate(tokens(text))


@pytest.mark.parametrize(
    ("text", "number", "undone"),
    [
        ("7", 7, ""),
        ("-7", -7, ""),
        ("--7", 7, ""),
        ("-+-+7", 7, ""),
        ("1/2", Fraction(1, 2), ""),
        (r"\frac{3}{4}", Fraction(3, 4), ""),
        (r"\frac34", Fraction(3, 4), ""),
        ("10^4", 10_000, ""),
        ("2^{-1}", Fraction(1, 2), ""),
        ("2^-1", Fraction(1, 2), ""),
        ("2^{--1}", 2, ""),
        (r"(\frac12)^2", Fraction(1, 4), ""),
        (r"1.5 \cdot 10^3", 1500, ""),
        (r"1.5 \times 10^{-3}", Fraction(3, 2000), ""),
        ("1+2", 3, "sum"),
        ("1-2", -1, "sum"),
        ("5-2+1", 4, "sum"),
        ("2*3", 6, "product"),
        ("2*-3", -6, "product"),
        ("2*--3", 6, "product"),
        ("2*+3", 6, "product"),
        ("2^{+3}", 8, ""),
        ("6/-3", -2, ""),
        ("(2)(3)", 6, "product"),
        ("0.5/2", Fraction(1, 4), "product"),
        ("1/0.5", 2, "product"),
        ("1+2*3", 7, "sum product"),
        ("10^2*2", 200, "product"),
        ("3*10^{1/2*2}", 30, "product"),
        ("1^2", 1, "other"),
        ("0^2", 0, "other"),
        ("(-1)^3", -1, "other"),
        (r"(\frac12)^{-1}", 2, "other"),
        ("-2^2", -4, ""),
        ("(-2)^2", 4, ""),
        ("2^3^2", 512, ""),
        ("(2^3)^2", 64, ""),
        (r"\sqrt{16}", 4, "other"),
        (r"\sqrt[3]{-8}", -2, "other"),
        (r"\sqrt[12]{4096}", 2, "other"),
        (r"\sqrt{\frac{9}{4}}", Fraction(3, 2), "other"),
        (r"8^{2/3}", 4, "other"),
        ("4^{-1/2}", Fraction(1, 2), "other"),
        ("5!", 120, "other"),
        ("0!", 1, "other"),
        ("(1+2)!", 6, "sum other"),
        ("3!^2", 36, "other"),
        ("2^{3!}", 64, "other"),
        (r"\binom{5}{2}", 10, "other"),
        (r"\binom50", 1, "other"),
        (r"\binom{5}{5}", 1, "other"),
        (r"\dbinom{6}{3}", 20, "other"),
    ],
)
def test_numbers_come_to_their_value_and_what_is_left_to_do_is_noted(
    text: str, number: Fraction | int, undone: str
) -> None:
    found = value(text)
    assert found.constant == number
    assert found.undone == set(undone.split())
    assert found.complete
    assert found.real is not None
    assert found.real == pytest.approx(float(number))
    assert found.at == (field.rational(number),) * 2


@pytest.mark.parametrize(
    "text", [f"{500}!", r"\binom{500}{250}", "2^{6000}", r"\sqrt[12]{x}", "(" * 39 + "1" + ")" * 39]
)
def test_the_largest_that_is_worked_out(text: str) -> None:
    value(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "501!",
            "(-1)!",
            r"(\frac12)!",
            r"\binom{501}{2}",
            r"\binom{2}{3}",
            r"\binom{2}{-1}",
            r"\binom{1/2}{1}",
        ),
        *(
            r"\binom{5}{1/2}",
            "1/0",
            "0^0",
            "0^{-1}",
            "2^{20000}",
            r"2^{\pi/1 - \pi}x^",
            "2^{1/13}" + "^",
            "",
            "+",
            "2^",
        ),
        *(
            r"\sqrt[1]{2}",
            r"\sqrt[13]{2}",
            r"\sqrt[x]{2}",
            r"\sqrt[2",
            "(1",
            "(1]",
            "[1)",
            "|1",
            "1)",
            r"\{1\}",
        ),
        *(
            r"\lfloor 1",
            r"\lfloor 1 \rceil",
            "x_",
            "x_{1",
            "1/2x",
            "1/2(3)",
            "2 3",
            r"3\frac12",
            r"3\frac{1}{2}",
            r"2\frac{1}{2}x",
            r"\frac123",
            "2x3",
            "x%y_",
            "x,y",
        ),
        *("(" * 40 + "1" + ")" * 40, "x°:", r"\frac{1}", r"\sin", "1 or 2", "x:y"),
    ],
)
def test_what_has_no_value_or_several_is_not_read(text: str) -> None:
    with pytest.raises(Unread):
        value(text)


def of(name: str) -> float:
    return field.real(name)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"\pi", math.pi),
        ("e", math.e),
        ("i", 1j),
        ("i^2", -1),
        ("1/i", -1j),
        ("x", of("x")),
        ("-x", -of("x")),
        ("x+1", of("x") + 1),
        ("3x", 3 * of("x")),
        ("x/3", of("x") / 3),
        ("x^2", of("x") ** 2),
        ("2^x", 2 ** of("x")),
        (r"\sqrt{2}", math.sqrt(2)),
        (r"\sqrt{-4}", 2j),
        (r"\sqrt[3]{-2}", -(2 ** (1 / 3))),
        (r"\sqrt[3]{x-9}", -((9 - of("x")) ** (1 / 3))),
        (r"\sin 1", math.sin(1)),
        (r"\cos x", math.cos(of("x"))),
        (r"\tan 1", math.tan(1)),
        (r"\arcsin\frac12", math.asin(0.5)),
        (r"\cos^{-1}(\frac12)", math.acos(0.5)),
        (r"\arctan 2", math.atan(2)),
        (r"\sinh 1", math.sinh(1)),
        (r"\exp 2", math.exp(2)),
        (r"\ln 3", math.log(3)),
        (r"\log_2 8", 3),
        (r"\log_{10} 1000", 3),
        ("|-3|", 3),
        (r"\lfloor -\frac52 \rfloor", -3),
        (r"\lceil \frac52 \rceil", 3),
        ("n!", math.gamma(of("n") + 1)),
        (
            r"\binom{n+3}{k}",
            math.gamma(of("n") + 4) / (math.gamma(of("k") + 1) * math.gamma(of("n") + 4 - of("k"))),
        ),
        (r"\sin^2 1", math.sin(1) ** 2),
        (r"\sin 2x", math.sin(2 * of("x"))),
        (r"\sin x \cos x", math.sin(of("x")) * math.cos(of("x"))),
    ],
)
def test_what_an_expression_is_nearly(text: str, number: complex) -> None:
    found = value(text).real
    assert found is not None
    assert found == pytest.approx(number)


@pytest.mark.parametrize(
    "text",
    [
        r"\arcsin 2",
        r"\ln 0",
        r"\sin i",
        r"\exp 1000",
        "f(x)",
        r"\tr x",
        r"\ln(0-1)",
        r"10^{400}",
        r"\arcsin 2+1",
        r"3\arcsin 2",
        r"\ln 0/2",
        r"x^{\ln 0}",
        r"-\ln 0",
    ],
)
def test_what_has_no_real_value_here_has_none(text: str) -> None:
    assert text == "f(x)" or value(text).real is None


@pytest.mark.parametrize(
    ("text", "letters", "complete"),
    [
        ("x+y", "x y", True),
        ("x_1+x_{12}", "x_1 x_12", True),
        ("2i", "i", True),
        (r"2\pi", "pi", True),
        (r"\sqrt{2}", r"\root2", True),
        (r"\sqrt{9}", "", True),
        (r"\sqrt[3]{2}", r"\root3", False),
        (r"\sin x", r"x \sin", False),
        (r"\sin x + y", r"x y \sin", False),
        (r"2^x", "x", True),
        (r"x^\pi", r"x pi \power", False),
        (r"\sqrt{x}", r"x \root2", False),
        ("|x|", r"x \abs", False),
        ("n!", r"n \factorial", False),
        ("x°", "x °", True),
        ("5%", "%", True),
        ("10_2", "10_2", True),
    ],
)
def test_what_an_expression_depends_on(text: str, letters: str, complete: bool) -> None:
    found = value(text)
    assert {name.replace("root ", "root") for name in found.letters} == set(letters.split())
    assert found.complete == complete


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(x+1)^2", "x^2+2x+1"),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}"),
        (r"\sqrt{12}", r"2\sqrt{3}"),
        (r"\sqrt{\frac12}", r"\frac{\sqrt2}{2}"),
        (r"\sqrt[4]{4}", r"\sqrt{2}"),
        (r"\sqrt[4]{9}", r"3^{1/2}"),
        (r"\sqrt[3]{-2}", r"-\sqrt[3]{2}"),
        (r"\sqrt[3]{54}", r"3\sqrt[3]{2}"),
        (r"\sqrt{-1}", "i"),
        (r"\sqrt{-8}", r"2i\sqrt{2}"),
        ("(1+i)^2", "2i"),
        ("(1+i)^{-1}", r"\frac{1-i}{2}"),
        ("4^{x/2}", "2^x"),
        ("2^{x+1}", r"2\cdot 2^x"),
        (r"\frac{x^2-y^2}{x-y}", "x+y"),
        ("x^{-1}", r"\frac1x"),
        (r"2\frac1x", r"\frac{2}{x}"),
        (r"\sin(x+x)", r"\sin 2x"),
        ("[x+1]", "{x+1}"),
    ],
)
def test_equal_by_the_rules_of_algebra(one: str, other: str) -> None:
    assert value(one).at == value(other).at


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x", "y"),
        ("x", "-x"),
        ("x_1", "x_2"),
        ("x'", "x"),
        (r"\sqrt[3]{2}", r"\sqrt{2}"),
        (r"\sqrt[3]{x}", r"\sqrt{x}"),
        (r"\sqrt[4]{-4}", r"\sqrt{2}"),
        (r"\sqrt[4]{-1}", "i"),
        ("1+i", "1-i"),
        ("|x|", "x"),
        (r"\sin x", r"\cos x"),
        (r"\sin^2 x", r"\sin x^2"),
        (r"\lfloor x \rfloor", r"\lceil x \rceil"),
        (r"\log_2 x", r"\log_3 x"),
        (r"\binom{n}{k}", r"\binom{k}{n}"),
        ("x°", "x"),
        (r"\sqrt{5003}", r"\sqrt{5009}"),
    ],
)
def test_not_equal_by_them(one: str, other: str) -> None:
    assert value(one).at != value(other).at


def test_what_is_too_long_to_be_worked_out_is_no_number_but_has_its_place() -> None:
    long = "*".join(["2^{6000}"] * 4)
    assert value(long).constant is None
    assert value(long).at == value("(2^{6000})^{1}*(2^{6000})*(2^{6000}*2^{6000})").at


def test_the_field_obeys_the_rules_of_one() -> None:
    a, b = field.symbol("a"), field.symbol("b")
    assert field.add(a, field.negative(a)) == field.ZERO
    assert field.times(a, field.inverse(a)) == field.ONE
    assert field.times((0, 1), (0, 1)) == field.negative(field.ONE)
    assert field.times(a, field.add(b, a)) == field.add(field.times(a, b), field.times(a, a))
    assert field.add(a, b) == field.add(b, a)
    assert all(0 <= part < field.P for part in (*field.add(a, b), *field.negative(a), *field.times(a, b)))
    assert field.power(a, 3) == field.times(a, field.times(a, a))
    assert field.power(a, 0) == field.ONE
    assert field.power(a, -2) == field.inverse(field.times(a, a))
    assert field.power(a, field.ORDER) == field.power((7, 0), field.ORDER) == field.ONE
    assert field.power((7, 0), 2) == (49, 0)
    assert field.power(field.ZERO, 2) == field.ZERO
    for none in (0, -1):
        with pytest.raises(ZeroDivisionError):
            field.power(field.ZERO, none)
    with pytest.raises(ZeroDivisionError):
        field.inverse(field.ZERO)
    assert field.times(field.rational(Fraction(2, 3)), field.rational(3)) == field.rational(2) == (2, 0)


def test_elements_of_letters_and_symbols_are_their_own() -> None:
    names = [f"{letter}{n}" for letter in "abx" for n in range(40)]
    assert len({field.letter(name, point) for name in names for point in (0, 1)}) == 240
    assert all(field.letter(name, 0) % 720720 == 0 for name in names)  # x/2, ..., x/16 are integers, too
    assert all(field.letter(name, 0) // 720720 % 2 for name in names)
    assert (
        len({field.symbol(name) for name in names}) == len({field.symbol(name)[1] for name in names}) == 120
    )
    assert all(0 <= part < field.P for name in names for part in field.symbol(name))
    reals = [field.real(name) for name in names]
    assert 0.5 <= min(reals) < 0.6
    assert 2.4 < max(reals) < 2.5


@pytest.mark.parametrize(
    ("radicand", "degree", "exact", "complete"),
    [
        (4, 2, 2, True),
        (8, 3, 2, True),
        (Fraction(4, 9), 2, Fraction(2, 3), True),
        (-8, 3, -2, True),
        (1, 2, 1, True),
        (0, 2, 0, True),
        (5003**2, 2, 5003, True),
        (2, 2, None, True),
        (-2, 2, None, True),
        (Fraction(1, 2), 2, None, True),
        (4, 4, None, True),
        (2, 3, None, False),
        (-2, 3, None, False),
        (-4, 4, None, False),
        (10007, 2, None, True),
        (5003 * 5009, 2, None, False),  # may be a product of squares as far as anyone has looked
    ],
)
def test_roots_are_exact_where_they_are_rational_and_sure_where_their_rules_are_known(
    radicand: Fraction | int, degree: int, exact: Fraction | int | None, complete: bool
) -> None:
    element, root, is_sure = field.root(Fraction(radicand), degree)
    assert (root, is_sure) == (exact, complete)
    if exact is not None:
        assert element == field.rational(exact)
    if complete:
        assert field.power(element, degree) == field.rational(radicand) if radicand else element == field.ZERO
