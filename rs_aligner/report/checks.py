"""What to worry about: figures of a run against thresholds, each green, amber or red, or not known and why.

A check is a function of the run's facts and a row of `CHECKS`. Thresholds are rules of thumb; docs/report.md
says where each comes from. Left out on purpose: ending a run for one (`trainer.rs.patience` and
`max_failed_fraction` do).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rs_aligner.proof.tail import Tails
from rs_aligner.proof.watched import Parting, Validation
from rs_aligner.report.facts import LAST, Facts, Rows
from rs_aligner.report.pictures import number

State = Literal["good", "amber", "red", "unknown"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        value: in words and numbers.
        state: what that means.
        more: what else there is to say; where nothing is known, why.
    """

    value: str
    state: State
    more: str = ""


@dataclass(frozen=True)
class Check:
    """A row of the table: what is looked at, when it is amber and red, what helps, which figure it is."""

    name: str
    limits: str
    helps: str
    key: str
    find: Callable[[Facts], Finding]


@dataclass(frozen=True)
class Told:
    """A check with what it found."""

    check: Check
    found: Finding


def unknown(why: str) -> Finding:
    """Nothing to say, and why."""
    return Finding("not known", "unknown", why)


def graded(value: float, shown: str, amber: float, red: float, more: str = "") -> Finding:
    """A figure of which more is worse: amber and red are what it has to be above."""
    value -= 1e-9  # a mean of three times 0.1 is a little above it
    state: State = "red" if value > red else "amber" if value > amber else "good"
    return Finding(shown, state, more)


def _drift(facts: Facts) -> Finding:
    value = facts.now("kl/to_start")
    if value is None:
        return unknown("No step measured it; model.rs.kl_samples above 0 does, where the run samples.")
    return graded(value, f"{number(value)} nats a token", 0.1, 0.5)


def _length(facts: Facts) -> Finding:
    key = "response_length/mean"
    now, then = facts.now(key), facts.then(key)
    if now is None or not then or facts.number(key) < 2:
        return unknown("One step only, or none: nothing to compare.")
    change = now / then
    shown = f"{then:.0f} to {now:.0f} tokens ({change - 1:+z.0%})"
    shift = facts.now("shift/response_length")
    more = ""
    if shift is not None and abs(shift) > 0.1 * now:
        more = f"The kept are {abs(shift):.0f} tokens {'longer' if shift > 0 else 'shorter'} than all."
    return graded(max(change, 1 / change if change else 2.0), shown, 1.25, 1.5, more)


def _truncated(facts: Facts) -> Finding:
    steps = [row for row in facts.steps if row.get("rollouts/total") and "rollouts/truncated" in row][-LAST:]
    if not steps:
        return unknown("No step has rollouts yet.")
    share = sum(row["rollouts/truncated"] for row in steps) / sum(row["rollouts/total"] for row in steps)
    last = "step" if len(steps) == 1 else f"{len(steps)} steps"
    return graded(share, f"{share:.0%} of the answers of the last {last}", 0.1, 0.5)


def _duplicates(facts: Facts) -> Finding:
    now, then = facts.now("duplicates/share"), facts.then("duplicates/share")
    if now is None or then is None:
        return unknown("No step has rollouts yet.")
    return graded(now, f"{now:.0%} (at the start {then:.0%})", 0.2, 0.5)


def _entropy(facts: Facts) -> Finding:
    now, then = facts.now("entropy"), facts.then("entropy")
    if now is None or not then or facts.number("entropy") < 2:
        return unknown("One step only, or the answers came without log-probabilities: nothing to compare.")
    left = max(now / then, 0.0)
    return graded(1 - left, f"{number(then)} to {number(now)} nats a token ({left - 1:+z.0%})", 0.5, 0.8)


def _failed(facts: Facts) -> Finding:
    total = facts.total("rollouts/total")
    if not total:
        return unknown("No step has rollouts yet.")
    failed = facts.total("rollouts/failed")
    return graded(failed / total, f"{failed:,.0f} of {total:,.0f} ({failed / total:.1%})", 0.01, 0.1)


def _decidable(facts: Facts) -> Finding:
    value = facts.now("groups/decidable")
    if value is None:
        return unknown("It takes two scored answers to a prompt.")
    all_passed, none_passed = facts.now("groups/all_passed") or 0.0, facts.now("groups/none_passed") or 0.0
    more = f"All answers pass for {all_passed:.0%} of the prompts, none for {none_passed:.0%}."
    return graded(1 - value, f"{value:.0%} of the prompts", 0.7, 0.95, more)


def _kept_nothing(facts: Facts) -> Finding:
    steps = [row for row in facts.steps if "rollouts/kept" in row]
    if not steps:
        return unknown("No step is finished yet.")
    empty = sum(row["rollouts/kept"] == 0 for row in steps)
    return graded(empty / len(steps), f"{empty} of {_steps(len(steps))}", 0.0, 0.5)


def _skipped(facts: Facts) -> Finding:
    if not facts.steps:
        return unknown("No step is finished yet.")
    number_of = facts.total("optimizer_steps/skipped")
    shares = sum("optimizer_steps/skipped" in row for row in facts.steps) / len(facts.steps)
    return graded(shares, f"{number_of:,.0f}, in {shares:.0%} of the steps", 0.0, 0.1)


def validations(rows: Rows) -> Iterator[Validation]:
    """The looks at held-out prompts that both judges scored, with their errors."""
    names = ("reward", "reward_error", "watched", "watched_error")
    for row in rows:
        if all(f"validation/{name}" in row for name in names):
            yield Validation(int(row["step"]), *(row[f"validation/{name}"] for name in names))


def _parting(facts: Facts) -> Finding:
    looks = list(validations(facts.rows))
    correlation = facts.now("watched/rank_correlation")
    if not looks and correlation is None:
        return unknown("No second judge is watched; watched_rm names one.")
    more = "" if correlation is None else f"Their rank correlation within a prompt is {correlation:.2f} now."
    if len(looks) < 2:
        return Finding("not known", "unknown", f"One validation only, or none. {more}".strip())
    parting = Parting()
    for look in looks:
        parting.observe(look)
    best = max(looks, key=lambda look: (look.watched, look.step))
    shown = f"watched score {number(best.watched)} at step {best.step}, {number(looks[-1].watched)} now"
    if parting.has_parted:
        return Finding(shown, "red", f"They have parted since step {best.step}. {more}".strip())
    falls = (
        best.watched - looks[-1].watched > 2 * (best.watched_error**2 + looks[-1].watched_error ** 2) ** 0.5
    )
    return Finding(shown, "amber" if falls else "good", more)


def _tail(facts: Facts) -> Finding:
    tails = Tails()
    for row in facts.steps:
        tails.observe(row)
    places = tails.places
    if not places:
        return unknown("No second judge is watched, and no selector compares judges.")
    shown = ", ".join(f"{number(best)}, then {number(now)} ({name})" for name, (best, now) in places.items())
    more = "The highest and the last; 1 is above all other answers of the prompt, 0 is where chance would."
    return Finding(shown, "red" if tails.lost else "good", more)


CHECKS = (
    Check(
        "Drift from the starting policy",
        "amber above 0.1, red above 0.5 nats a token",
        "A lower rate, fewer steps, an anchor or a KL term (model.rs.objective).",
        "kl/to_start",
        _drift,
    ),
    Check(
        "Length of the answers",
        "amber from 25 %, red from 50 % longer than at the start, or 1/1.25 and 1/1.5 of it",
        "Look at the longest kept answers: a judge that likes length is easily fooled.",
        "response_length/mean",
        _length,
    ),
    Check(
        "Answers cut off at the length limit",
        "amber above 10 %, red above 50 %",
        "Raise model.rs.length_params.max_length, or end strings; a policy that learns from cut answers "
        "never learns to end.",
        "rollouts/truncated",
        _truncated,
    ),
    Check(
        "Duplicates among a prompt's answers",
        "amber above 20 %, red above 50 %",
        "A higher temperature, or the selector that is called distinct; short answers repeat by nature.",
        "duplicates/share",
        _duplicates,
    ),
    Check(
        "Loss of entropy",
        "amber when half of it is gone, red when four fifths are",
        "A lower rate, fewer steps, more kept answers of a prompt.",
        "entropy",
        _entropy,
    ),
    Check(
        "Answers that the judge gave no score",
        "amber above 1 %, red above 10 % of the run",
        "The reasons are with the rollouts below, and in the judge's log.",
        "rollouts/failed",
        _failed,
    ),
    Check(
        "Prompts whose answers the judge tells apart",
        "amber below 30 %, red below 5 %",
        "Prompts that are neither solved already nor too hard, more answers to a prompt, a finer judge.",
        "groups/decidable",
        _decidable,
    ),
    Check(
        "The judge and the watched judge part",
        "amber when the watched score has fallen by two standard errors, red when they have parted",
        "Stop at the best watched score: trainer.rs.patience with "
        "checkpoint_callback_params.monitor=validation/watched.",
        "validation/watched",
        _parting,
    ),
    Check(
        "Where other judges place the best of N",
        "red when less than half of it is left, by the rule that warns in the log",
        "Keep what two judges find good (the selector pessimistic); stop at the best watched score.",
        "tail/watched",
        _tail,
    ),
    Check(
        "Steps that kept nothing",
        "amber from one, red above half of the steps",
        "Easier prompts, a lower model.rs.min_reward, or a supervised warm start.",
        "rollouts/kept",
        _kept_nothing,
    ),
    Check(
        "Optimizer steps that were not finite",
        "amber from one, red in more than a tenth of the steps",
        "A lower rate; the rows are in bad_steps/.",
        "optimizer_steps/skipped",
        _skipped,
    ),
)


def checked(facts: Facts) -> list[Told]:
    """All checks with what they found, the worst first."""
    order = {"red": 0, "amber": 1, "good": 2, "unknown": 3}
    told = [Told(check, check.find(facts)) for check in CHECKS]
    return sorted(told, key=lambda one: order[one.found.state])


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
