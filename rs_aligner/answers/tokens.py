r"""An answer in LaTeX or plain typing as a list of tokens, the same for all ways to write it down.

Spacing, sizes, delimiters of formulas and the several fractions of LaTeX are gone; words in `\text{}` are
words, letters beside each other are letters, digits with separators are numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rs_aligner.answers.plain import WRAPPED, keyboard

MOST_TOKENS = 250
"""An answer of more is not read."""


class Unread(ValueError):
    """An answer, or a part of one, that is not read."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an answer.

    Attributes:
        kind: `number`, `letter`, `word`, `function`, `operator`, `open`, `close`, `separator`, `relation`,
            `command`.
        text: what it is.
        value: of a number.
        latex: as `math-verify` reads it.
    """

    kind: str
    text: str
    value: Fraction | None = None
    latex: str = ""


_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln",
    "log", "lg", "exp", "arg", "deg", "det", "dim", "gcd", "lcm", "max", "min", "Re", "Im", "sgn",
    "tr", "rank",
}  # fmt: skip  # as many as a line holds
_RELATIONS = {
    "<": "<", ">": ">", "=": "=", "lt": "<", "gt": ">", "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=",
    "geq": ">=", "geqslant": ">=", "ne": "!=", "neq": "!=", "in": "in",
}  # fmt: skip  # as many as a line holds
_OPERATORS = {
    "+": "+",
    "-": "-",
    "*": "*",
    "/": "/",
    "cdot": "*",
    "times": "*",
    "div": "/",
    "ast": "*",
    "^": "^",
}
_GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "pi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
        "ell",
        "hbar",
        "infty",
    ]
)
_COMMANDS = frozenset(
    [
        "frac",
        "sqrt",
        "binom",
        "pm",
        "mp",
        "cup",
        "lfloor",
        "rfloor",
        "lceil",
        "rceil",
        "lvert",
        "rvert",
        "lbrace",
        "rbrace",
        "langle",
        "rangle",
    ]
)
_UNICODE = str.maketrans(
    {
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
        "\u2260": r"\ne ",
        "\u221e": r"\infty ",
        "\u2208": r"\in ",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ",
        "\u00f7": r"\div ",
        "\u222a": r"\cup ",
        "\u00b1": r"\pm ",
        "\u2213": r"\mp ",
        "\u00b0": r"^\circ ",
        "\u221a": r"\sqrt ",
        "\u03c0": r"\pi ",
        "\u03b1": r"\alpha ",
        "\u03b2": r"\beta ",
        "\u03b8": r"\theta ",
        "\u03bb": r"\lambda ",
        "\u03bc": r"\mu ",
        "\u03c6": r"\phi ",
        "\u03c9": r"\omega ",
    }
)
_GONE = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|qquad|quad|mathstrut|thinspace)(?![A-Za-z])"
    r"|\\[!,;:> ()\[\]]|~|\\\\$|(?<!\\)\$"
)
_GROUPING = re.compile(r"(?<![A-Za-z])\{\s*,\s*\}\s*|,\s*\\!\s*(?=\d)")
_THIN = re.compile(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
_PLAIN_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_PIECE = re.compile(
    r"(?P<space>\s+)|(?P<number>\.?\d)|\\(?P<command>[A-Za-z]+)|\\(?P<escaped>[{}%$&#_|])|(?P<letters>[A-Za-z]+'*)"
    r"|(?P<relation><=|>=|!=|==|[<>=])|(?P<operator>\*\*|[-+*/^])|(?P<bracket>[()\[\]{}|])|(?P<mark>[,;!%_:°])"
)
_PLAIN_WORDS = {"or", "and", "sqrt", "pi", "infinity", "inf", "oo"}


def tokens(text: str) -> list[Token]:
    """The tokens of an answer.

    Raises:
        Unread: a character or a command without a meaning here, or too many of them.
    """
    if not text.isascii():
        text = keyboard(text.translate(_UNICODE))
    text = _DEGREES.sub(" ° ", text)
    text = _GROUPING.sub(",", _THIN.sub(",", text))
    text = _GONE.sub(" ", text)
    found: list[Token] = []
    place, depth = 0, 0
    while place < len(text):
        if wrapped := WRAPPED.match(text, place):
            found += _words(wrapped[1])
            place = wrapped.end()
            continue
        piece = _PIECE.match(text, place)
        if piece is None or len(found) > MOST_TOKENS:
            raise Unread(text[place:])
        kind = str(piece.lastgroup)
        said = piece[kind]
        place = piece.end()
        match kind:
            case "space":
                continue
            case "number":
                number = (_PLAIN_NUMBER if depth else _NUMBER).match(text, piece.start())
                assert number is not None
                place = number.end()
                found.append(_number(number[0]))
            case "command":
                found.append(_command(said))
            case "escaped":
                found.append(_escaped(said))
            case "letters":
                found += _letters(said, found)
            case "relation":
                said = {"==": "=", "<=": "<=", ">=": ">="}.get(said, said)
                found.append(Token("relation", said, latex=said))
            case "operator":
                said = "^" if said == "**" else said
                found.append(Token("operator", said, latex=said))
            case "bracket":
                depth += (said in "([") - (said in ")]")
                kind = "bar" if said == "|" else "open" if said in "([{" else "close"
                found.append(Token(kind, said, latex=said))
            case _:
                kind = "separator" if said in ",;" else "mark"
                found.append(Token(kind, said, latex=r"^\circ" if said == "°" else said))
    return found


def _number(text: str) -> Token:
    digits = text.replace(",", "")
    if len(digits) > 400:
        raise Unread("a long number")
    value = Fraction(digits)
    latex = digits if "." not in digits else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return Token("number", digits, value, latex)


def _command(name: str) -> Token:
    if name in ("dfrac", "tfrac", "cfrac"):
        name = "frac"
    if name in ("dbinom", "tbinom"):
        name = "binom"
    if name in _RELATIONS:
        return Token("relation", _RELATIONS[name], latex=rf"\{name} ")
    if name in _OPERATORS:
        return Token("operator", _OPERATORS[name], latex=rf"\{name} ")
    if name in _FUNCTIONS:
        return Token("function", name, latex=rf"\{name} ")
    if name in _GREEK:
        return Token("letter", name, latex=rf"\{name} ")
    if name in ("lbrace", "rbrace", "lvert", "rvert", "vert"):
        return _escaped({"lbrace": "{", "rbrace": "}"}.get(name, "|"))
    if name in _COMMANDS:
        return Token("command", name, latex=rf"\{name} ")
    raise Unread(name)


def _escaped(said: str) -> Token:
    match said:
        case "{":
            return Token("open", r"\{", latex=r"\{")
        case "}":
            return Token("close", r"\}", latex=r"\}")
        case "%":
            return Token("mark", "%", latex=r"\%")
        case "|":
            return Token("bar", "|", latex="|")
    raise Unread(said)


def _letters(said: str, before: list[Token]) -> list[Token]:
    r"""Letters outside of `\text`: a name of a function, a word, or letters that are multiplied."""
    lower = said.lower()
    if lower in ("or", "and"):
        return [Token("separator", lower)]
    if said in _FUNCTIONS:
        return [Token("function", said, latex=rf"\{said} ")]
    if lower == "sqrt":
        return [Token("command", "sqrt", latex=r"\sqrt ")]
    if lower == "pi":
        return [Token("letter", "pi", latex=r"\pi ")]
    if lower in ("infinity", "inf", "oo"):
        return [Token("letter", "infty", latex=r"\infty ")]
    name = said.rstrip("'")
    if len(name) > 3:
        return [Token("word", said)]
    letters = [Token("letter", char, latex=char) for char in name]
    if said != name:
        letters[-1] = Token("letter", name[-1] + said[len(name) :], latex=said[len(name) - 1 :])
    return letters


def _words(content: str) -> list[Token]:
    content = " ".join(content.split())
    if not content:
        return []
    lower = content.lower()
    if lower in ("or", "and", ",", ", and", ", or", "and ", ";"):
        return [Token("separator", "or" if "or" in lower else "and" if "and" in lower else ",")]
    if content in _FUNCTIONS:
        return [Token("function", content, latex=rf"\{content} ")]
    bare = content.strip("(). ")
    if len(bare) == 1 and bare.isalpha():
        return [Token("letter", bare, latex=bare)]
    if not any(char.isalpha() for char in content):
        return tokens(content)
    return [Token("word", content)]
