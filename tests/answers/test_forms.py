r"""What an answer is read as, its pieces, its unit and its words; and which forms are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest

from rs_aligner.answers.forms import Form, same, up_to_scale
from rs_aligner.answers.reading import read
from rs_aligner.answers.texts import normalised, plain_words, words
from rs_aligner.answers.tokens import Token, Unread, tokens
from rs_aligner.answers.units import is_unit, unit_name, unit_of


def said(text: str) -> str:
    """Kinds and texts of an answer's tokens, in a line."""
    return " ".join(f"{token.kind}:{token.text}" for token in tokens(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.5", "number:1234.5"),
        ("1{,}234", "number:1234"),
        (r"1,\!234", "number:1234"),
        (r"12\,345\,678", "number:12345678"),
        ("1~234", "number:1234"),
        (".5", "number:.5"),
        ("1,23", "number:1 separator:, number:23"),
        ("1,2345", "number:1 separator:, number:2345"),
        ("(1,234)", "open:( number:1 separator:, number:234 close:)"),
        ("(1),234", "open:( number:1 close:) separator:, number:234"),
        (r"\sqrt{1,234}", "command:sqrt open:{ number:1234 close:}"),
        ("(1) 1,234", "open:( number:1 close:) number:1234"),
        ("[0,100)", "open:[ number:0 separator:, number:100 close:)"),
        (r"\left( x \right)", "open:( letter:x close:)"),
        (r"\bigl( x \Bigr)", "open:( letter:x close:)"),
        (r"\dfrac{1}{2}", "command:frac open:{ number:1 close:} open:{ number:2 close:}"),
        (r"\tbinom n k", "command:binom letter:n letter:k"),
        (r"x \leq y", "letter:x relation:<= letter:y"),
        (r"x \geqslant y", "letter:x relation:>= letter:y"),
        ("x <= y", "letter:x relation:<= letter:y"),
        ("x == y", "letter:x relation:= letter:y"),
        ("x != y", "letter:x relation:!= letter:y"),
        (r"x \neq y", "letter:x relation:!= letter:y"),
        (r"x \in y", "letter:x relation:in letter:y"),
        ("x**2", "letter:x operator:^ number:2"),
        (
            r"2 \cdot 3 \times 4 \div 5",
            "number:2 operator:* number:3 operator:* number:4 operator:/ number:5",
        ),
        ("30^\\circ", "number:30 mark:°"),
        ("30^{\\circ}", "number:30 mark:°"),
        (r"30\degree", "number:30 mark:°"),
        ("30\u00b0", "number:30 mark:°"),
        (r"5\%", "number:5 mark:%"),
        (r"\{1\}", r"open:\{ number:1 close:\}"),
        (r"\lbrace 1 \rbrace", r"open:\{ number:1 close:\}"),
        (r"\lvert x \rvert", "bar:| letter:x bar:|"),
        (r"\| x |", "bar:| letter:x bar:|"),
        ("xy", "letter:x letter:y"),
        ("abc", "letter:a letter:b letter:c"),
        ("abcd", "word:abcd"),
        ("xy'", "letter:x letter:y'"),
        ("f''", "letter:f''"),
        ("sin x", "function:sin letter:x"),
        (r"\sin x", "function:sin letter:x"),
        ("sqrt", "command:sqrt"),
        ("PI", "letter:pi"),
        ("oo", "letter:infty"),
        ("Infinity", "letter:infty"),
        ("1 or 2", "number:1 separator:or number:2"),
        ("1 AND 2", "number:1 separator:and number:2"),
        (r"1\text{ or }2", "number:1 separator:or number:2"),
        (r"1\text{, and }2", "number:1 separator:and number:2"),
        (r"1\text{,}2", "number:1 separator:, number:2"),
        (r"1\text{;}2", "number:1 separator:, number:2"),
        (r"\text{  }1", "number:1"),
        (r"\text{(C)}", "letter:C"),
        (r"\text{12}", "number:12"),
        (r"\mathrm{lcm}", "function:lcm"),
        (r"\text{red  cats}", "word:red cats"),
        ("1;2", "number:1 separator:; number:2"),
        ("\u2264", "relation:<="),
        ("\u2265", "relation:>="),
        ("\u2260", "relation:!="),
        ("\u221e", "letter:infty"),
        ("\u2208", "relation:in"),
        ("\u00d7\u00b7\u22c5\u00f7", "operator:* operator:* operator:* operator:/"),
        ("\u222a", "command:cup"),
        ("\u00b1\u2213", "command:pm command:mp"),
        ("\u221ax", "command:sqrt letter:x"),
        ("\u03c0\u03b1\u03b2\u03b8", "letter:pi letter:alpha letter:beta letter:theta"),
        ("\u03bb\u03bc\u03c6\u03c9", "letter:lambda letter:mu letter:phi letter:omega"),
        ("$x$", "letter:x"),
        (r"\(x\)", "letter:x"),
        (r"x \quad y\\", "letter:x letter:y"),
    ],
)
def test_pieces_of_an_answer(text: str, expected: str) -> None:
    assert said(text) == expected


@pytest.mark.parametrize(
    "text", ["?", "x & y", r"\int x", r"\mathbb R", r"\$5", "9" * 401, "x" + "+x" * 125 + "+"]
)
def test_what_has_no_meaning_here_or_is_too_long_has_no_pieces(text: str) -> None:
    with pytest.raises(Unread):
        tokens(text)


def test_the_longest_that_has() -> None:
    assert len(tokens("x" + "+x" * 125)) == 251
    assert tokens("9" * 400)[0].value == 10**400 - 1


def test_a_token_has_its_value_and_what_the_library_reads_and_stays_as_it_is() -> None:
    assert tokens("0.25") == [Token("number", "0.25", Fraction(1, 4), r"\frac{1}{4}")]
    assert tokens("25") == [Token("number", "25", Fraction(25), "25")]
    latex = "".join(token.latex for token in tokens(r"\sin \pi x^{2}*\sqrt{y'}+30° \le f_1 |5|%"))
    assert latex.replace(" ", "") == r"\sin\pix^{2}*\sqrt{y'}+30^\circ\lef_1|5|%"
    with pytest.raises(AttributeError):
        tokens("1")[0].text = "2"  # type: ignore[misc]  # it is frozen: this has to fail


@pytest.mark.parametrize(
    ("behind", "unit"),
    [
        ("feet", "foot"),
        ("ft.", "foot"),
        (" Dollars", "dollar"),
        ("square feet", "foot^2"),
        ("sq ft", "foot^2"),
        ("Cubic meters", "m^3"),
        ("m", "m"),
        ("inches", "inch"),
        ("hrs", "hour"),
        ("%", "percent"),
        ("\u00a2", "cent"),
        ("miles per hour", "mile"),
        ("square", ""),
        ("square cats", ""),
        ("cats", ""),
        ("ss", "second"),
        ("", ""),
        (" ", ""),
        ("12", ""),
    ],
)
def test_words_behind_a_number_that_are_a_known_unit(behind: str, unit: str) -> None:
    assert unit_of("", behind) == unit
    assert unit_of("cost: ", behind) == unit
    for before in ("$", "cost $", "-$-", "$(", "$ "):
        assert unit_of(before, behind) == "dollar"
    assert unit_name(behind) == unit
    assert unit_name(behind, "2") == (f"{unit}^2" if unit else "")


def test_what_leaves_a_number_as_it_is() -> None:
    assert all(map(is_unit, ["cm", "big red cats", "a b c d e f g h", ""]))
    assert not any(
        map(is_unit, ["or not", "More", "less than that", "a b c d e f g h i", "and so on", "squared"])
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("even", "even"),
        ("Even.", "even"),
        ("'Even'", "even"),
        ("(no)", "no"),
        ("(no) (yes)", ""),
        ("New York", "new york"),
        ("New-York, it's", "new-york, it's"),
        (r"\text{New} \text{York}", "new york"),
        ("red or blue", "red or blue"),
        ("x or y", "x or y"),
        ("no", "no"),
        ("ABC", "abc"),
        ("pi", ""),
        ("PI", ""),
        (r"\text{pi}", "pi"),
        ("pie", "pie"),
        ("a-b", ""),
        ("a, b-c", ""),
        ("xy - z", ""),
        ("T-shirt", "t-shirt"),
        ("x", ""),
        (r"\text{C}", ""),
        ("a b c", ""),
        ("a be c", "a be c"),
        ("a,b", ""),
        ("x, y, z", ""),
        ("x, yes", "x, yes"),
        ("x2", ""),
        ("-no", ""),
        ("", ""),
        ("Stra\u00dfe", "strasse"),
    ],
)
def test_answers_that_are_words(text: str, found: str) -> None:
    assert plain_words(text) == found


def test_an_answer_of_400_characters_is_read_and_no_longer_one() -> None:
    assert read(" " + "A" * 400 + ".").how == "a" * 400
    assert read("A" * 401).how == "A" * 401


def test_what_is_not_read_is_compared_but_for_spacing_and_case_of_words() -> None:
    assert normalised(r" \dfrac{1}{2} \, \text{Cats}  and X") == r"\frac{1}{2}cats and X"
    assert normalised(r"$\left( a , b \right)$") == "(a,b)"
    assert normalised("x y") == "x y"
    assert normalised("'1 + 1'.") == "1+1"
    assert words('\n \n "It IS  so."\nmore') == "it is so"
    assert words(r"**\text{Paris}**") == "paris"
    assert words("") == ""


def shape(form: Form) -> str:
    """A form's kind and how, with those of its parts."""
    parts = f"({' '.join(map(shape, form.parts))})" if form.parts else ""
    how = "" if form.kind in ("relation", "equation", "text") else form.how
    name, unit = f"{form.name}=" if form.name else "", f"~{form.unit}" if form.unit else ""
    return f"{name}{form.kind[:4]}{how}{parts}{unit}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", "expr"),
        ("(7)", "expr"),
        ("{7}", "expr"),
        ("((x+1))", "expr"),
        ("a-b", "expr"),
        ("(x)(y)", "expr"),
        ("x=7", "x=expr"),
        ("f(x)=7", "f(x)=expr"),
        ("AB=7", "AB=expr"),
        ("a_1=7", "a_1=expr"),
        (r"\lambda=7", "lambda=expr"),
        ("x'=7", "x'=expr"),
        ("area=7", "area=expr"),
        ("x=y=7", "x=expr"),
        ("5+3=8", "expr"),
        ("2x=8", "equa"),
        ("x+y=7", "equa"),
        ("2x=3y=6", "text"),
        (r"2x=\{1,2\}", "text"),
        (r"\{1,2\}=2x", "text"),
        ("2x=5+3=8", "text"),
        ("1,2", "list(expr expr)"),
        ("1, 2 and 3", "list(expr expr expr)"),
        ("1, 2, and 3", "list(expr expr expr)"),
        ("x=1,2", "x=list(expr expr)"),
        (r"x=1\text{ or }x=2", "x=list(expr expr)"),
        ("x=1,y=2", "list(x=expr y=expr)"),
        ("1,y=2", "list(expr y=expr)"),
        (r"x=\pm 3", "x=list(expr expr)"),
        (r"1\pm 3", "list(expr expr)"),
        (r"1\pm 3, 4", "list(expr expr expr)"),
        ("(1,2)", "inte()(expr expr)"),
        ("(1,2]", "inte(](expr expr)"),
        ("[1,2)", "inte[)(expr expr)"),
        ("(1,2),(3,4)", "list(inte()(expr expr) inte()(expr expr))"),
        ("(1)(2,3)", "text"),
        ("(x,y)=(1,2)", "(x,y)=inte()(expr expr)"),
        (r"(1,2)\cup[3,4]", "unio(inte()(expr expr) inte[](expr expr))"),
        (r"x\in(1,2)", "x=inte()(expr expr)"),
        (r"\{1,2\}", "set(expr expr)"),
        (r"\{1,1,2\}", "set(expr expr)"),
        (r"\{7\}", "set(expr)"),
        (r"\{\}", "text"),
        (r"\{1\text{ or }2\}", "text"),
        (r"\{1,2)", "text"),
        ("(1 or 2)", "text"),
        ("x>3", "rela(inte()(expr expr))"),
        ("x<3", "rela(inte()(expr expr))"),
        (r"x\ge 3", "rela(inte[)(expr expr))"),
        (r"x\le 3", "rela(inte(](expr expr))"),
        (r"3\le x", "rela(inte[)(expr expr))"),
        ("3>x", "rela(inte()(expr expr))"),
        (r"1<x\le 3", "rela(inte(](expr expr))"),
        (r"3\ge x>1", "rela(inte(](expr expr))"),
        ("1<x>3", "rela"),
        ("1<2x<3", "rela"),
        ("x+y<3", "rela"),
        (r"x\ne 3", "rela"),
        ("x<3=y", "text"),
        ("x<1,2", "listand(rela(inte()(expr expr)) expr)"),
        ("1<x<3<4<5", "text"),
        ("x<", "text"),
        ("<x", "text"),
        (r"x<3\text{ or }x>5", "listor(rela(inte()(expr expr)) rela(inte()(expr expr)))"),
        (r"x<3\text{ and }x>5", "listand(rela(inte()(expr expr)) rela(inte()(expr expr)))"),
        ("x<3,x>5", "listand(rela(inte()(expr expr)) rela(inte()(expr expr)))"),
        (r"\sin x < 3", "text"),
        ("0<1", "rela"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "matr2 x 2(expr expr expr expr)"),
        (r"\begin{bmatrix}1\\2\end{bmatrix}", "matr2 x 1(expr expr)"),
        (r"\begin{vmatrix}1&2\end{vmatrix}", "dete1 x 2(expr expr)"),
        (r"A=\begin{matrix}1&2\end{matrix}", "matr1 x 2(expr expr)"),
        (r"\left(\begin{array}{cc}1&2\end{array}\right)", "matr1 x 2(expr expr)"),
        (r"\begin{pmatrix}1\\[2pt]2\end{pmatrix}", "matr2 x 1(expr expr)"),
        (r"\begin{pmatrix}1&2\\3\end{pmatrix}", "text"),
        (r"\begin{pmatrix}\end{pmatrix}", "text"),
        (rf"\begin{{pmatrix}}{'&'.join('1' * 64)}\end{{pmatrix}}", f"matr1 x 64({' '.join(['expr'] * 64)})"),
        (rf"\begin{{pmatrix}}{'&'.join('1' * 65)}\end{{pmatrix}}", "text"),
        (r"12\text{ cm}", "expr~cm"),
        (r"12\text{ cm}^2", "expr~cm^2"),
        (r"12\text{ cm}^{2}", "text"),
        (r"12\text{ square feet}", "expr~foot^2"),
        (r"12\text{ cats}", "expr"),
        (r"12\text{ or more}", "text"),
        (r"12\text{ square}\text{ feet}", "expr~foot^2"),
        (r"12\text{ cm}^4", "text"),
        (r"12\text{ cats}+2", "text"),
        (r"\text{cm}^2", "text"),
        (r"2^2\text{ cm}", "expr~cm"),
        ("°", "text"),
        ("xy=7", "xy=expr"),
        ("xyz=7", "equa"),
        ("ABC=7", "ABC=expr"),
        ("x_{12}=7", "x_{12}=expr"),
        ("x2=7", "text"),
        ("(x;y)=(1;2)", "(x;y)=inte()(expr expr)"),
        ("((x,y))=7", "text"),
        ("x<x", "text"),
        ("x<i", "text"),
        ("x<y", "rela(inte()(expr expr))"),
        ("0<1<x<3", "rela"),
        (r"x\in y\in z", "text"),
        (r"\text{the matrix is }A=\begin{pmatrix}1\end{pmatrix}", "matr1 x 1(expr)"),
        ("30°", "expr~degree"),
        (r"\frac12°", "expr~degree"),
        ("x°", "expr"),
        ("\u03c0\u22483.14", "expr"),
        (r"\pi\approx 3.13", "expr"),
        (r"\pi\approx 3.18", "text"),
        (r"\approx 3.14", "expr"),
        (r"x\approx y,z", "text"),
        (",".join("1" * 24), f"list({' '.join(['expr'] * 24)})"),
        (",".join("1" * 25), "text"),
        ("1,", "text"),
        ("1,even", "text"),
        ("even", "text"),
        (r"x \equiv 1", "text"),
        ("7.", "expr"),
        ("", "text"),
    ],
)
def test_what_an_answer_is_read_as(text: str, expected: str) -> None:
    assert shape(read(text)) == expected


def never(reference: str, answer: str) -> bool:
    raise AssertionError(f"the library was asked about {reference} and {answer}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x", "y=x"),
        ("y=x+1", "x+1"),
        ("y=x+1", "2y-2x=2"),
        ("x+y=1", "2x+2y-2=0"),
        ("x=y", "y=x"),
        ("x=1", "1"),
        ("a-b", "-b + a"),
        ("AB=7", "BC=7"),  # only lone letters are names that matter
        (r"\{1,2\}", "2,1"),
        ("1<x<2", "(1,2)"),
        ("x>1", r"(1,\infty)"),
        (r"x\le 1", r"(-\infty,1]"),
        (r"x<1\text{ or }x\ge 2", r"[2,\infty)\cup(-\infty,1)"),
        ("2x>6", "3<x"),
        ("-x>3", "x<-3"),
        (r"x\ne 3", r"3\ne x"),
        (r"\frac12,3", "3,0.5"),
        ("12", r"12\text{ cm}"),
        ("x^2=4", "4=x^2"),
        ("0=0", "0"),
        (r"2\sqrt{x}\sqrt{x}", r"2\sqrt{x}\cdot\sqrt{x}"),
    ],
)
def test_forms_that_are_the_same_without_asking_anyone(one: str, other: str) -> None:
    assert same(read(one), read(other), never)
    assert same(read(other), read(one), never)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x=1", "y=1"),
        ("x+y=1", "x+y=2"),
        ("x+y=1", "x-y=1"),
        ("x+1", "x+2"),
        ("x<1,y<2", "x<1,y<3"),
        (r"\{1,2\}", "1,2,3"),
        ("1,2,2", "1,1,2"),
        ("1,2", "1"),
        ("1<x<2", "[1,2]"),
        ("1<x<2", "1<y<3"),
        (r"x<1\text{ and }x\ge 2", r"[2,\infty)\cup(-\infty,1)"),
        ("x<1,2", r"(-\infty,1)\cup(2,3)"),
        ("2x>6", "x<3"),
        (r"x\ne 3", "x=3"),
        (r"12\text{ m}", r"12\text{ cm}"),
        (r"12x\text{ m}", r"12x\text{ cm}"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "(1,2,3)"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{vmatrix}1&2\end{vmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
        ("even", "odd"),
        ("even", "7"),
        (r"\sqrt{2}", "2"),
        (r"\sin 1", r"\sin 2"),
        (r"\sin x", r"\sin y"),
        (r"0.5\sin x+\cos x", r"\frac12\cos(x)\cdot\tan(x)+\cos x\cdot 1"),
    ],
)
def test_forms_that_differ_without_asking_anyone(one: str, other: str) -> None:
    assert not same(read(one), read(other), never)
    assert not same(read(other), read(one), never)


def test_work_that_was_asked_for_is_to_be_done() -> None:
    for answer, reference in [("1+x", "x+1"), ("3+5+x", "3+5+x"), ("8", "3+5"), ("6", r"\sqrt{36}")]:
        assert same(read(answer), read(reference), never)
    for answer, reference in [("3+5", "8"), (r"\sqrt{36}", "6"), ("6", r"2\cdot 3"), (r"3+5+\pi", r"8+\pi")]:
        assert not same(read(answer), read(reference), never)


def test_only_expressions_with_the_same_letters_that_are_near_each_other_are_asked_about() -> None:
    asked = []

    def ask(reference: str, answer: str) -> bool:
        asked.append((reference.replace(" ", ""), answer.replace(" ", "")))
        return True

    assert same(read(r"\cos 2x"), read(r"1-2\sin^2 x"), ask)
    assert asked == [(r"1-2\sin^{2}x", r"\cos2x")]
    assert same(read(r"3\ln 2, 1"), read(r"1, \ln 8"), ask)
    assert same(read(r"(1,3\ln 2)"), read(r"(1,\ln 8)"), ask)
    assert len(asked) == 3
    for one, other in [
        (r"\cos 2x", r"1-2\sin^2 y"),
        (r"\sin x+2^y", r"\sin x + y"),
        (r"1.0\ln 8", r"3\ln 2"),
    ]:
        assert not same(read(one), read(other), ask)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("0.5", "1/2"),
        ("x=7", "7"),
        ("1,2", "list  (1, 2)"),
        ("2,1", "list  (1, 2)"),
        (r"\{2,1\}", "set  (1, 2)"),
        ("(2,1)", "interval () (2, 1)"),
        ("Even", "text even ()"),
    ],
)
def test_the_name_of_an_answer_in_a_vote(text: str, key: str) -> None:
    assert read(text).key == key


def test_work_left_to_do_has_another_name_in_a_vote() -> None:
    assert read("3+5").key.startswith("undone ")
    assert read("3+5").key == read("5+3").key == read("1+7").key
    assert read("x+1").key == read("1+x").key != read("x+2").key


def test_equations_are_compared_up_to_a_number() -> None:
    def scaled(text: str) -> str:
        value = read(text).value
        assert value is not None
        return up_to_scale(value)

    assert scaled("2x+2y") == scaled("x+y") != scaled("x-y")
    assert scaled("x-x") == "0"
    assert scaled("3") == "3"
    with pytest.raises(Unread):
        scaled(r"\sin x")
