"""What a page says in words: whether the run worked.

Sentences are made of figures here, so that tests can hold each against figures worked out by hand. Where
there is not enough to tell, that is what is said. Left out on purpose: what it cost
(`worth`), what to worry about (`checks`), and layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Literal

from rs_aligner.report.facts import Facts
from rs_aligner.report.pictures import NUM_ERRORS, number, with_error
from rs_aligner.report.run_data import RunKind
from rs_aligner.report.sums import Look

Answer = Literal["yes", "no", "unclear", "unknown"]


@dataclass(frozen=True)
class Score:
    """A held-out score: of which step, the mean, and its standard error where there is one."""

    step: int
    mean: float
    error: float | None

    def __str__(self) -> str:
        if self.error is None:
            return f"{number(self.mean)} (of one prompt, so nobody knows how sure)"
        return with_error(self.mean, self.error)


@dataclass(frozen=True)
class Change:
    """What became of a held-out score.

    Attributes:
        before, after: the first look and the last.
        error: standard error of the difference; None where nobody knows.
        is_paired: whether the error is that of the prompts' own differences.
    """

    before: Score
    after: Score
    error: float | None
    is_paired: bool

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after.mean - self.before.mean

    @property
    def answer(self) -> Answer:
        """Whether it rose, by more than chance explains."""
        if self.error is None:
            return "unclear"
        if abs(self.difference) <= NUM_ERRORS * self.error + 1e-9:
            return "unclear"
        return "yes" if self.difference > 0 else "no"


@dataclass(frozen=True)
class Verdict:
    """Did it work? An answer, a headline, and the sentences below it."""

    answer: Answer
    headline: str
    sentences: tuple[str, ...]
    change: Change | None = None


def change_of(
    rows: Sequence[Mapping[str, float]], key: str, looks: Sequence[Look | None] = ()
) -> Change | None:
    """What became of a held-out figure; None with fewer than two validations.

    Args:
        rows: of `metrics.jsonl`.
        key: `validation/reward` or `validation/watched`.
        looks: the first and the last look at held-out prompts, from the ledger, for the error of the
            difference.
    """
    there = [row for row in rows if key in row]
    if len(there) < 2:
        return None
    before, after = (
        Score(int(row["step"]), row[key], row.get(f"{key}_error")) for row in (there[0], there[-1])
    )
    paired = _paired_error(looks, before.step, after.step, watched=key.endswith("watched"))
    if paired is not None:
        return Change(before, after, paired, is_paired=True)
    if before.error is None or after.error is None:
        return Change(before, after, None, is_paired=False)
    return Change(before, after, math.hypot(before.error, after.error), is_paired=False)


def _paired_error(looks: Sequence[Look | None], before: int, after: int, *, watched: bool) -> float | None:
    """Standard error of the mean of the prompts' differences; None for looks at other prompts."""
    first, last = looks if len(looks) == 2 else (None, None)
    if first is None or last is None:
        return None
    if [first.step, last.step] != [before, after] or [one.id for one in first.prompts] != [
        one.id for one in last.prompts
    ]:
        return None
    pairs = [
        (one.watched, other.watched) if watched else (one.mean, other.mean)
        for one, other in zip(first.prompts, last.prompts, strict=True)
    ]
    changes = [new - old for old, new in pairs if old is not None and new is not None]
    return stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None


def verdict(facts: Facts, kind: RunKind) -> Verdict:
    """Did it work?"""
    if kind == "train_reward_model":
        return _of_reward_model(facts)
    looks = (facts.sums.first, facts.sums.last) if facts.sums is not None else ()
    there = [row for row in facts.rows if "validation/reward" in row]
    if not there:
        return Verdict(
            "unknown",
            "Nobody can tell: no held-out answers were scored.",
            (
                "The scores of training answers are of other prompts in every step, and of prompts that "
                "are learnt from. Held-out prompts (model.data.data_prefix.validation) would tell.",
            ),
        )
    change = change_of(facts.rows, "validation/reward", looks)
    if change is None:
        only = Score(
            int(there[0]["step"]), there[0]["validation/reward"], there[0].get("validation/reward_error")
        )
        return Verdict(
            "unknown",
            "It is too early to tell: there is one validation only.",
            (f"The held-out score {_when(only.step)} is {only}.",),
        )
    return Verdict(change.answer, _headline(change), tuple(_sentences(facts, change, looks)), change)


def _headline(change: Change) -> str:
    size = number(abs(change.difference))
    if change.answer == "yes":
        return f"Yes: the held-out score rose by {size}."
    if change.answer == "no":
        return f"No: the held-out score fell by {size}."
    if change.error is None:
        return "Nobody can tell: of one held-out prompt there is no error."
    return "Not shown: the held-out score changed by no more than chance explains."


def _sentences(facts: Facts, change: Change, looks: Sequence[Look | None]) -> list[str]:
    before, after = change.before, change.after
    said = [
        f"The mean score of held-out answers was {before} {_when(before.step)} and is {after} "
        f"{_when(after.step)}; behind ± is the standard error over prompts."
    ]
    if change.error is not None:
        how = "from the differences of each prompt" if change.is_paired else "as of two independent samples"
        said.append(
            f"The difference is {with_error(change.difference, change.error)} ({how}); more than two of "
            "these errors count as a change."
        )
    scores = {int(row["step"]): row["validation/reward"] for row in facts.rows if "validation/reward" in row}
    best = max(scores, key=lambda step: (scores[step], step))
    if best != after.step and len(scores) > 2:
        said.append(
            f"The highest of the {len(scores)} validations was {number(scores[best])} {_when(best)}; the "
            "highest of many is a little too high by chance."
        )
    watched = change_of(facts.rows, "validation/watched", looks)
    if watched is not None:
        moved = {"yes": "rose", "no": "fell"}.get(watched.answer, "changed by no more than chance explains")
        said.append(
            f"The judge that is only watched, which nothing is selected by: its held-out score {moved}, "
            f"from {watched.before} to {watched.after}."
        )
    return said


def _of_reward_model(facts: Facts) -> Verdict:
    there = [row for row in facts.rows if "validation/accuracy" in row]
    if not there:
        headline = "Nobody can tell: no held-out pairs were looked at."
        return Verdict("unknown", headline, ("model.data.data_prefix.validation names them.",))
    first, last = there[0], there[-1]
    after = f"{last['validation/accuracy']:.1%} of the held-out pairs are ordered right {_when(last['step'])}"
    if len(there) == 1:
        return Verdict("unknown", "It is too early to tell: there is one validation only.", (f"{after}.",))
    change = last["validation/accuracy"] - first["validation/accuracy"]
    words = f"{'rose' if change > 0 else 'fell' if change < 0 else 'stayed the same'}"
    return Verdict(
        "unclear",
        f"The held-out accuracy {words}: {first['validation/accuracy']:.1%} to "
        f"{last['validation/accuracy']:.1%}.",
        (
            f"{after}; a model that guesses orders half of them right.",
            "How many held-out pairs there are is not among the figures, so nobody can say here what "
            "chance explains.",
        ),
    )


def _when(step: float) -> str:
    return f"after step {step:g}" if step else "before the first step"
