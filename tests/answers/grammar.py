"""Pairs drawn from a grammar of answers: rewritten (right) and changed (wrong).

It knows nothing of our readers. Each kind makes a reference and, from the same numbers and letters, other
ways to write it and answers that are not it: relations turned, ends swapped, letters and roots left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import gcd

Drawn = tuple[str, list[str], list[str]]
"""A reference, right ways to write it, wrong answers."""
SQUAREFREE = (2, 3, 5, 6, 7, 10, 11, 13)
LETTERS = "xyntkabm"


def fraction(rng: random.Random, above: int, below: int) -> str:
    sign = "-" if above < 0 else ""
    a = abs(above)
    return sign + rng.choice(
        [
            rf"\frac{{{a}}}{{{below}}}",
            rf"\dfrac{{{a}}}{{{below}}}",
            rf"\tfrac{{{a}}}{{{below}}}",
            f"{a}/{below}",
        ]
    )


def reduced(rng: random.Random) -> tuple[int, int]:
    while True:
        a, b = rng.randint(1, 19), rng.randint(2, 12)
        if gcd(a, b) == 1:
            return a, b


def spaced(rng: random.Random, *parts: str) -> str:
    return rng.choice(["", " ", " ", r"\,"]).join(parts)


def relation(rng: random.Random) -> Drawn:
    x, n = rng.choice(LETTERS), rng.randint(-20, 20)
    signs = {"<": "<", ">": ">", r"\le": r"\leq", r"\ge": r"\geq"}
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    strict = {"<": r"\le", ">": r"\ge", r"\le": "<", r"\ge": ">"}
    how = rng.choice(list(signs))
    right = [f"{x} {how} {n}", f"{x}{signs[how]} {n}", f"{n} {turned[how]} {x}", f"{x} {signs[how]}{n}"]
    wrong = [
        f"{x} {turned[how]} {n}",
        f"{n} {how} {x}",
        f"{x} {strict[how]} {n}",
        f"{x} = {n}",
        f"{n}",
        f"{x} {how} {n + 1}",
    ]
    return f"{x} {how} {n}", right, wrong


def unequal(rng: random.Random) -> Drawn:
    x, n = rng.choice(LETTERS), rng.randint(-20, 20)
    return rf"{x} \neq {n}", [rf"{x} \ne {n}", rf"{x}\neq{n}"], [f"{x} = {n}", f"{n}", rf"{x} \neq {n - 1}"]


def chain(rng: random.Random) -> Drawn:
    x, a = rng.choice(LETTERS), rng.randint(-9, 9)
    b = a + rng.randint(1, 9)
    return (
        rf"{a} < {x} \le {b}",
        [rf"{a}<{x}\leq {b}", rf"{b} \ge {x} > {a}"],
        [rf"{a} \le {x} < {b}", rf"{a} > {x} \ge {b}", f"{a} < {x} < {b}", f"{x} > {a}", f"{a}, {b}"],
    )


def interval(rng: random.Random) -> Drawn:
    a = rng.randint(-9, 9)
    b = a + rng.randint(1, 9)
    low, high = rng.choice("(["), rng.choice(")]")
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}
    return (
        f"{low}{a}, {b}{high}",
        [f"{low}{a},{b}{high}", rf"\left{low}{a}, {b}\right{high}", rf"x \in {low}{a}, {b}{high}"],
        [
            f"{low}{b}, {a}{high}",
            f"{other[low]}{a}, {b}{high}",
            f"{low}{a}, {b}{other[high]}",
            f"{a}",
            f"{a}.{abs(b)}",
            f"{low}{a}, {b + 1}{high}",
        ],
    )


def ray(rng: random.Random) -> Drawn:
    a = rng.randint(-9, 9)
    low = rng.choice("([")
    return (
        rf"{low}{a}, \infty)",
        [rf"{low}{a},\infty)", rf"\left{low}{a}, \infty\right)", rf"{low}{a}, +\infty)"],
        [
            rf"(-\infty, {a})",
            rf"(-\infty, {a}]",
            f"{a}",
            rf"{'[' if low == '(' else '('}{a}, \infty)",
            r"(-\infty, \infty)",
        ],
    )


def union(rng: random.Random) -> Drawn:
    a = rng.randint(-9, 5)
    b = a + rng.randint(1, 9)
    return (
        rf"(-\infty, {a}) \cup ({b}, \infty)",
        [rf"(-\infty,{a})\cup({b},\infty)", rf"({b},\infty) \cup (-\infty,{a})"],
        [
            rf"(-\infty, {a})",
            f"({a}, {b})",
            rf"(-\infty, {b}) \cup ({a}, \infty)",
            rf"(-\infty, {a}] \cup [{b}, \infty)",
        ],
    )


def point(rng: random.Random) -> Drawn:
    size = rng.choice([2, 2, 3])
    numbers = rng.sample(range(-12, 13), size)
    text = ", ".join(map(str, numbers))
    changed = [*numbers[:-1], -numbers[-1] or 1]
    return (
        f"({text})",
        [
            f"({text.replace(' ', '')})",
            rf"\left({text}\right)",
            f"(x, y{', z' if size == 3 else ''}) = ({text})",
        ],
        [
            f"({', '.join(map(str, numbers[::-1]))})",
            f"({', '.join(map(str, changed))})",
            f"{numbers[0]}",
            f"({', '.join(map(str, [*numbers, 1]))})",
        ],
    )


def listed(rng: random.Random) -> Drawn:
    numbers = rng.sample(range(-15, 16), rng.choice([2, 3]))
    shuffled = numbers[::-1]
    plain = ", ".join(map(str, numbers))
    return (
        plain,
        [
            ",".join(map(str, shuffled)),
            rf"{', '.join(map(str, shuffled[:-1]))} \text{{ and }} {shuffled[-1]}",
            rf"\{{{plain}\}}",
            rf"x = {plain}",
            rf"x = {numbers[0]} \text{{ or }} x = {numbers[1]}" if len(numbers) == 2 else plain,
        ],
        [
            ", ".join(map(str, numbers[1:])),
            f"{numbers[0]}",
            f"{plain}, 20",
            ", ".join(map(str, [*numbers[:-1], numbers[-1] + 40])),
            ", ".join(str(-n or 1) for n in numbers),
        ],
    )


def hedged(rng: random.Random) -> Drawn:
    n = rng.randint(2, 60)
    return (
        f"{n}",
        [f"{n}", f"x = {n}", f"{n}.0"],
        [
            rf"{n} \text{{ or }} {n + 1}",
            rf"{n - 1}, {n}",
            rf"{n - 1} \text{{ and }} {n}",
            rf"\pm {n}",
            f"{n}!",
            f"{n}x",
            rf"{n}\sqrt{{2}}",
            rf"\{{{n}, {n + 2}\}}",
        ],
    )


def root(rng: random.Random) -> Drawn:
    a, b = rng.randint(2, 12), rng.choice(SQUAREFREE)
    return (
        rf"{a}\sqrt{{{b}}}",
        [
            rf"{a} \sqrt{{{b}}}",
            rf"\sqrt{{{a * a * b}}}",
            rf"{a} \cdot \sqrt{{{b}}}",
            rf"\sqrt{{{b}}} \cdot {a}",
        ],
        [
            f"{a}",
            rf"\sqrt{{{b}}}",
            rf"-{a}\sqrt{{{b}}}",
            rf"{a + 1}\sqrt{{{b}}}",
            f"{a * b}",
            rf"{a}^{{{b}}}",
            rf"{a}\sqrt[3]{{{b}}}",
        ],
    )


def surd(rng: random.Random) -> Drawn:
    a, b, c = rng.randint(1, 9), rng.randint(2, 9), rng.choice(SQUAREFREE)
    sign, other = rng.sample("+-", 2)
    turned = rf"{b}\sqrt{{{c}}} + {a}" if sign == "+" else rf"-{b}\sqrt{{{c}}} + {a}"
    return (
        rf"{a} {sign} {b}\sqrt{{{c}}}",
        [rf"{a}{sign}{b}\sqrt{{{c}}}", turned, rf"{a} {sign} \sqrt{{{b * b * c}}}"],
        [
            rf"{a} {other} {b}\sqrt{{{c}}}",
            f"{a}",
            rf"{b}\sqrt{{{c}}}",
            rf"{a} {sign} {b}",
            rf"{a} \pm {b}\sqrt{{{c}}}",
        ],
    )


def over_root(rng: random.Random) -> Drawn:
    a, b = rng.randint(1, 9), rng.choice(SQUAREFREE)
    return (
        rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}",
        [
            rf"\frac{{{a}}}{{\sqrt{{{b}}}}}",
            rf"\dfrac{{{a}\sqrt{{{b}}}}}{{{b}}}",
            rf"\frac{{{a}}}{{{b}}}\sqrt{{{b}}}",
        ],
        [rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a}\sqrt{{{b}}}}}{{{b + 1}}}", rf"{a}\sqrt{{{b}}}", f"{a}"],
    )


def polynomial(rng: random.Random) -> Drawn:
    x = rng.choice(LETTERS)
    p, q = rng.sample(range(1, 10), 2)
    s, t = p + q, p * q
    return (
        rf"{x}^2 + {s}{x} + {t}",
        [
            rf"{t} + {s}{x} + {x}^2",
            rf"{x}^{{2}}+{s}{x}+{t}",
            rf"({x}+{p})({x}+{q})",
            rf"{x}^2 + {t} + {s} \cdot {x}",
        ],
        [
            rf"{x}^2 - {s}{x} + {t}",
            rf"{x}^2 + {s}{x} - {t}",
            f"{t}",
            f"{x} + {s}{x} + {t}",
            rf"{x}^2 + {s} + {t}",
            rf"({x}-{p})({x}-{q})",
            rf"{x}^3 + {s}{x} + {t}",
        ],
    )


def monomial(rng: random.Random) -> Drawn:
    x, a = rng.choice(LETTERS), rng.randint(2, 20)
    return (
        f"{a}{x}",
        [f"{a} {x}", rf"{a} \cdot {x}", rf"{x} \cdot {a}", f"{a}*{x}"],
        [f"{a}", f"{x}", f"{a + 1}{x}", f"{a}{x}^2", rf"\frac{{{a}}}{{{x}}}", f"-{a}{x}"],
    )


def linear(rng: random.Random) -> Drawn:
    a, b = rng.randint(2, 9), rng.randint(1, 9)
    return (
        f"y = {a}x + {b}",
        [f"y={a}x+{b}", f"y = {b} + {a}x", f"{a}x + {b}"],
        [
            f"y = {b if b != a else b + 1}x + {a}",
            f"y = {a}x - {b}",
            f"{b}",
            f"{a}",
            f"y = {a}x",
            f"x = {a}y + {b}",
        ],
    )


def power(rng: random.Random) -> Drawn:
    x, a = rng.choice("nkm"), rng.randint(2, 9)
    return (
        f"{a}^{x}",
        [f"{a}^{{{x}}}", f"{a} ^ {x}", rf"{a} \cdot {a}^{{{x}-1}}"],
        [f"{a}", f"{a}{x}", f"{x}^{a}", f"{a}^{{{x}+1}}", f"{a + 1}^{x}"],
    )


def big(rng: random.Random) -> Drawn:
    a, k = rng.choice([2, 3, 10]), rng.randint(4, 9)
    return (
        f"{a}^{{{k}}}",
        [f"{a**k}", f"{a**k:,}", f"{a}^{k}"],
        [f"{a}^{{{k + 1}}}", f"{a * k}", f"{a}{k}", f"{k}^{{{a}}}" if k**a != a**k else f"{a}", f"{a}"],
    )


def pi(rng: random.Random) -> Drawn:
    a, b = reduced(rng)
    top = r"\pi" if a == 1 else rf"{a}\pi"
    return (
        rf"\frac{{{top}}}{{{b}}}",
        [rf"{top}/{b}", rf"\dfrac{{{top}}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi"],
        [
            rf"\frac{{{a}}}{{{b}}}",
            top,
            rf"-\frac{{{top}}}{{{b}}}",
            rf"\frac{{{top}}}{{{b + 1}}}",
            r"\pi" if (a, b) != (1, 1) else "0",
        ],
    )


def number(rng: random.Random) -> Drawn:
    a, b = reduced(rng)
    return (
        rf"\frac{{{a}}}{{{b}}}",
        [fraction(rng, a, b), f"{a}/{b}", rf"x = \frac{{{a}}}{{{b}}}"],
        [
            f"{a}",
            fraction(rng, -a, b),
            fraction(rng, a + b, b) if b > 1 else "0",
            f"{a / b:.2f}1",
            rf"\frac{{{a}}}{{{b}}}x",
            rf"\frac{{{a}}}{{x}}",
        ],
    )


def matrix(rng: random.Random) -> Drawn:
    a, b, c, d = rng.sample(range(-9, 10), 4)

    def written(kind: str, a: object, b: object, c: object, d: object, gap: str = " ") -> str:
        return rf"\begin{{{kind}}}{gap}{a}{gap}&{gap}{b}{gap}\\{gap}{c}{gap}&{gap}{d}{gap}\end{{{kind}}}"

    return (
        written("pmatrix", a, b, c, d),
        [written("pmatrix", a, b, c, d, ""), written("bmatrix", a, b, c, d)],
        [
            written("pmatrix", a, c, b, d),
            written("pmatrix", a, b, c, d + 1),
            written("pmatrix", d, b, c, a),
            f"({a}, {b}, {c}, {d})",
        ],
    )


def complex_number(rng: random.Random) -> Drawn:
    a, b = rng.randint(1, 9), rng.randint(2, 9)
    return (
        f"{a} + {b}i",
        [f"{a}+{b}i", f"{b}i + {a}", rf"{a} + {b} \cdot i"],
        [f"{a} - {b}i", f"{a}", f"{b}i", f"{b} + {a}i" if a != b else f"{a}i", f"{a + b}"],
    )


def word(rng: random.Random) -> Drawn:
    one, other = rng.sample(
        ["even", "odd", "Monday", "Friday", "triangle", "converges", "yes", "no", "ellipse"], 2
    )
    return (
        rf"\text{{{one}}}",
        [one, one.capitalize(), rf"\text{{{one}}}", rf"\textbf{{{one}}}"],
        [other, rf"\text{{not {one}}}", rf"\text{{{one} or {other}}}", one[:-1]],
    )


def both_signs(rng: random.Random) -> Drawn:
    n = rng.randint(2, 20)
    return (
        rf"\pm {n}",
        [rf"{n}, -{n}", rf"\pm{n}", rf"-{n} \text{{ and }} {n}", rf"x = \pm {n}"],
        [f"{n}", f"-{n}", rf"\pm {n + 1}", rf"{n}, {n}"],
    )


def measured(rng: random.Random) -> Drawn:
    n = rng.randint(2, 180)
    return (
        rf"{n}^\circ",
        [rf"{n}^{{\circ}}", rf"{n} \text{{ degrees}}", f"{n}"],
        [rf"{n + 1}^\circ", rf"{n}\pi", rf"{n} \text{{ meters}}", rf"\cos {n}^\circ"],
    )


KINDS: tuple[Callable[[random.Random], Drawn], ...] = (
    relation, unequal, chain, interval, ray, union, point, listed, hedged, root, surd, over_root, polynomial,
    monomial, linear, power, big, pi, number, matrix, complex_number, word, both_signs, measured,
)  # fmt: skip  # as many as a line holds
WRAPS = (
    r"So we get \boxed{{{}}}.",
    r"$\boxed{{{}}}$",
    r"\[ \boxed{{ {} }} \]",
    r"Checking with 3 cases: $$\boxed{{{}}}$$ as was to be shown.",
)


def drawn(count: int, *, right: bool, seed: int = 0) -> list[tuple[str, str]]:
    """Responses and references."""
    rng = random.Random(f"{seed} {right}")
    found = []
    for n in range(count):
        reference, rights, wrongs = KINDS[n % len(KINDS)](rng)
        answer = rng.choice(rights if right else wrongs)
        found.append((rng.choice(WRAPS).format(answer), reference))
    return found
