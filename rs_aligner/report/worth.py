"""What choosing by score gained over choosing at random, and what the run cost, in words and numbers.

Left out on purpose: whether the run worked (`story`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rs_aligner.report.facts import Facts
from rs_aligner.report.pictures import NUM_ERRORS, number


def selection_against_chance(facts: Facts) -> list[str]:
    """What choosing gained over a choice at random, and what more it could have gained."""
    steps = [row for row in facts.steps if "control/random_std" in row and row.get("rollouts/kept")]
    if not steps:
        return ["No step has kept anything yet, so there is nothing to compare with chance."]
    weights = [row["rollouts/kept"] for row in steps]
    # z is of the kept among those that were sampled by design, as the control is; kept_mean is of all.
    gains = [row.get("control/z", 0.0) * row["control/random_std"] for row in steps]
    total = sum(weights)
    gain = sum(weight * one for weight, one in zip(weights, gains, strict=True)) / total
    error = math.sqrt(
        sum((weight * row["control/random_std"]) ** 2 for weight, row in zip(weights, steps, strict=True))
    )
    error /= total
    many = "the one step" if len(steps) == 1 else f"{len(steps)} steps"
    said = [
        f"Over {many} the kept answers score {_than(gain)} as many answers to the same "
        "prompts, drawn at random"
        + (f" ({number(gain / error)} standard deviations of such a draw)." if error > 1e-12 else ".")
    ]
    if error <= 1e-12:
        said.append("There was no choice: all answers of a prompt were kept, or all had the same score.")
    elif gain <= NUM_ERRORS * error:
        said.append(
            "That is no more than chance: the selection does not follow the score, or the judge does not "
            "tell answers apart."
        )
    else:
        said.append(
            "That is what the judge and the selection do to the answers; whether the policy learns from "
            "it is what the held-out score tells."
        )
    if (headroom := facts.now("reward/headroom")) is not None and headroom > 0:
        said.append(f"The best answer of each prompt is another {number(headroom)} above the kept ones now.")
    return said


@dataclass(frozen=True)
class Cost:
    """One line of what a run cost: a name, a number, what is in it."""

    name: str
    value: str
    note: str = ""


def costs(facts: Facts) -> list[Cost]:
    """What the run cost so far."""
    sums, found = facts.sums, []
    if sums is not None:
        what = "scored answers, given" if facts.is_offline else "answers sampled"
        found.append(Cost(what, f"{sums.rollouts:,}", f"and {sums.held_out:,} sampled to held-out prompts"))
    if tokens := facts.total("tokens/generated"):
        found.append(Cost("tokens sampled", f"{tokens:,.0f}", "for training; held-out answers come on top"))
    if sums is not None:
        scored = sums.held_out + (0 if facts.is_offline else sums.rollouts)
        found.append(Cost("answers judged", f"{scored:,}", "each once; what was asked again is not counted"))
        if sums.watched:
            found.append(Cost("answers judged by the watched judge", f"{sums.watched:,}"))
    asked, read, written = (
        _of_judge(facts, key) for key in ("requests", "prompt_tokens", "completion_tokens")
    )
    if read or written:
        told = f"{read:,.0f} read, {written:,.0f} written"
        found.append(
            Cost("tokens of the judge", told, f"in {asked:,.0f} requests, held-out answers included")
        )
    steps = facts.steps
    whole = facts.total("time/step")
    if steps and whole:
        found.append(
            Cost(
                "time of all steps",
                duration(whole),
                f"{number(whole / len(steps))} s a step; validations and checkpoints come on top",
            )
        )
        for name, key in (
            ("handing weights to servers", "time/weights"),
            ("sampling", "time/generate"),
            ("waiting for the judge", "time/score_wait"),
            ("training", "time/train"),
        ):
            if part := facts.total(key):
                found.append(Cost(f"of it {name}", duration(part), f"{part / whole:.0%}"))
    return found


def _of_judge(facts: Facts, name: str) -> float:
    """What a judge of the run's own processes counted, over all steps and held-out looks."""
    keys = (f"{where}judge/{name}" for where in ("", "validation/"))
    return math.fsum(row.get(key, 0.0) for key in keys for row in facts.rows)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the two largest that count."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


def _than(gain: float) -> str:
    """A difference in words, to be followed by what it is to."""
    if not gain:
        return "no higher than"
    return f"{number(abs(gain))} {'higher' if gain > 0 else 'lower'} than"
