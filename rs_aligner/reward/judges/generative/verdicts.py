"""How a score is read from what a model says: a number, a field of a JSON object, labels by what they weigh.

What is not read whole is no verdict: "7 of the 10 points, or 8" is neither 7 nor 8. A verdict has a variance,
too, where the model's own probabilities show one. Left out on purpose: a guess.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple

from rs_aligner.config.openai_judge import ScoreConfig
from rs_aligner.reward.judges.generative.completion import Completion, NoVerdict, Token, shown

_THOUGHT, _THOUGHT_ENDS = "<think>", "</think>"
_AROUND = " \t\r\n*_`\"'()[]#>"  # what people and models put around a verdict
_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_ALONE = re.compile(
    rf"(?:[A-Za-z][A-Za-z ]{{0,24}}[:=])?[{re.escape(_AROUND)}]*({_NUMBER})"
    rf"(?:[ ]?(?:/|out of)[ ]?({_NUMBER}))?[{re.escape(_AROUND)}.]*"
)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n\s*```", re.DOTALL)
_SPACES = "▁Ġ "  # before a token, as tokenizers write it


class Verdict(NamedTuple):
    """What a model says a text is worth.

    Attributes:
        value: the score.
        variance: of the score, as the model's own probabilities have it; 0 where they were not asked for.
    """

    value: float
    variance: float = 0.0


def read_verdict(completion: Completion, how: ScoreConfig) -> Verdict:
    """The verdict in an answer.

    Raises:
        NoVerdict: there is none, or none that is clear.
    """
    if how.kind == "labels" and how.by == "logprobs":
        return _by_probability(completion.tokens, how)
    if completion.is_cut:
        raise _unreadable("it was cut at its greatest length, judge.kwargs.max_tokens", completion.text)
    text = completion.text[_start(completion.text, how) :].strip()
    if how.kind == "json":
        return Verdict(_within(_field(text, how), text, how))
    line = text.splitlines()[0] if text and how.after is not None else text
    if how.kind == "labels":
        return Verdict(_label(line, how))
    return Verdict(_within(_number(line, how), text, how))


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """Several verdicts on the same as one: their mean, and the variance of one of them.

    That is the mean of their own variances and the variance between them (divisor n - 1), by the law of total
    variance.
    """
    values = [one.value for one in verdicts]
    between = variance(values) if len(values) > 1 else 0.0
    return Verdict(fmean(values), fmean(one.variance for one in verdicts) + between)


def _unreadable(why: str, text: str) -> NoVerdict:
    return NoVerdict(f"the verdict cannot be read: {why}: {shown(text)}")


def _start(text: str, how: ScoreConfig) -> int:
    """Where the verdict begins: behind what was thought, and behind the last `after`."""
    thought = text.rfind(_THOUGHT_ENDS)
    start = 0 if thought < 0 else thought + len(_THOUGHT_ENDS)
    if thought < 0 and text.lstrip().startswith(_THOUGHT):
        raise _unreadable("its thoughts have no end", text)
    if how.after is not None:
        found = text.rfind(how.after, start)
        if found < 0:
            raise _unreadable(f"there is no {how.after!r} in it (judge.kwargs.score.after)", text[start:])
        start = found + len(how.after)
    return start


def _number(line: str, how: ScoreConfig) -> float:
    found = _ALONE.fullmatch(line.strip(_AROUND))
    if found is None:
        raise _unreadable("it is not one number alone", line)
    if found[2] is not None and float(found[2]) != how.highest:
        raise _unreadable(f"it is out of {found[2]}, and judge.kwargs.score.highest is {how.highest}", line)
    return float(found[1])


def _within(number: float, text: str, how: ScoreConfig) -> float:
    lowest = -math.inf if how.lowest is None else how.lowest
    highest = math.inf if how.highest is None else how.highest
    if not math.isfinite(number) or not lowest <= number <= highest:
        raise _unreadable(f"{number:g} is not from {lowest:g} to {highest:g} (judge.kwargs.score)", text)
    return number


def _field(text: str, how: ScoreConfig) -> float:
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise _unreadable("it is no JSON object", text) from None
    for name in how.field.split("."):
        if not isinstance(found, dict) or name not in found:
            raise _unreadable(f"it has no field {how.field} (judge.kwargs.score.field)", text)
        found = found[name]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _unreadable(f"its field {how.field} is no number", text)
    try:
        return float(found)
    except OverflowError:
        raise _unreadable(f"its field {how.field} is too large", text) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name stands twice: which of them counts would be anybody's guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _label(line: str, how: ScoreConfig) -> float:
    said = {line.strip().casefold(), line.strip(_AROUND + ".:").casefold()}
    found = [worth for label, worth in how.labels.items() if label.strip().casefold() in said]
    if len(found) != 1:
        raise _unreadable(f"it is none of {', '.join(how.labels)} alone", line)
    return found[0]


def _by_probability(tokens: Sequence[Token] | None, how: ScoreConfig) -> Verdict:
    """The labels' mean worth, and its variance, by their probabilities where the verdict begins."""
    if not tokens:
        raise NoVerdict(
            "the server gave no log-probabilities that can be read; judge.kwargs.score.by=text needs none"
        )
    found = [(_masses(token, how), token) for token in _places(tokens, how)]
    able = (one for one in found if math.fsum(one[0].values()) >= how.least_mass)
    masses, token = next(able, max(found, key=lambda one: math.fsum(one[0].values())))
    mass = math.fsum(masses.values())
    if mass <= 0 or mass < how.least_mass:
        likely = ", ".join(f"{text!r} {math.exp(chance):.2g}" for text, chance in token.top[:3])
        enough = f", and should have {how.least_mass:g} (judge.kwargs.score.least_mass)" if mass > 0 else ""
        raise NoVerdict(
            f"the verdict cannot be read: the labels have {mass:.2g} of the probability together{enough}; "
            f"likely are {likely or 'none'}. A label should be one token of the model's"
        )
    return _moments({label: part / mass for label, part in masses.items()}, how)


def _places(tokens: Sequence[Token], how: ScoreConfig) -> list[Token]:
    """The tokens with which the verdict may begin: all up to the first that has a word in it."""
    text = "".join(token.text for token in tokens)
    start, end = _start(text, how), 0
    found: list[Token] = []
    for token in tokens:
        end += len(token.text)
        if end > start:
            found.append(token)
            if token.text.strip(_AROUND + _SPACES):
                break
    if not found:
        raise _unreadable("it ends before its verdict", text)
    return found


def _masses(token: Token, how: ScoreConfig) -> dict[str, float]:
    """The probability of each label in the place of a token."""
    found = dict.fromkeys(how.labels, 0.0)
    for label in how.labels:
        plain = label.strip().casefold()
        alike = (chance for text, chance in token.top if text.strip().strip(_SPACES).casefold() == plain)
        found[label] = math.fsum(map(math.exp, alike))
    return found


def _moments(chances: Mapping[str, float], how: ScoreConfig) -> Verdict:
    mean = math.fsum(chance * how.labels[label] for label, chance in chances.items())
    spread = math.fsum(chance * (how.labels[label] - mean) ** 2 for label, chance in chances.items())
    return Verdict(mean, spread)
