"""Sinks of a run's figures besides `metrics.jsonl`, and what they are shown of a step.

Some take figures only, as Lightning's do; others also what was sampled: how scores and lengths are
distributed, and a few answers to look at, of the first prompts a kept one and a rejected one each. Left out
on purpose: all answers, which are in the ledger, and the sinks themselves (`loggers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from rs_aligner.rollout import Group, Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which is not needed here

MOST_PROMPTS = 4  # that answers are shown of
Fate = Literal["kept", "rejected", "held-out"]


@dataclass(frozen=True, slots=True)
class Example:
    """An answer to look at.

    Attributes:
        prompt, response: as they are; whoever shows them makes them harmless.
        fate: what became of it.
        reason: why; empty for a held-out one.
        reward: None where there is no score.
        failure: why there is none; empty where there is one.
        watched: the watched judge's score; None for none.
        length: in tokens, the end token included.
        finish_reason: `stop` or `length`.
    """

    prompt: str
    response: str
    fate: Fate
    reason: str
    reward: float | None
    failure: str
    watched: float | None
    length: int
    finish_reason: str

    def cells(self) -> dict[str, str | float | int | None]:
        """By the names of a table's columns."""
        return {
            "fate": self.fate,
            "reason": self.reason or self.failure,
            "score": self.reward,
            "watched": self.watched,
            "prompt": self.prompt,
            "response": self.response,
            "tokens": self.length,
            "end": self.finish_reason,
        }


@dataclass(frozen=True)
class Sampled:
    """The rollouts of a step, or the answers to held-out prompts behind one.

    Attributes:
        groups: all of them.
        selection: of the groups; None for held-out answers.
        by_design: of each group the places that were sampled whatever was scored before; None for all.
    """

    groups: Sequence[Group]
    selection: Selection | None = None
    by_design: Sequence[Sequence[int]] | None = None

    @property
    def name(self) -> str:
        """Of the answers, as part of a sink's keys."""
        return "rollouts" if self.selection is not None else "validation"

    def distributions(self) -> dict[str, list[float]]:
        """Numbers of which a sink makes a histogram, by key; none is empty.

        `distribution/reward` and `distribution/response_length` are over what the step's means are over,
        `distribution/kept_reward` is over all that was kept.
        """
        groups = list(self.groups)
        if self.by_design is not None:
            groups = [group.only(part) for group, part in zip(groups, self.by_design, strict=True)]
        prefix = "distribution/" if self.selection is not None else "distribution/validation_"
        found = {
            f"{prefix}reward": [
                one.reward for group in groups for one in group.scores if isinstance(one, Score)
            ],
            f"{prefix}response_length": [
                float(len(rollout.token_ids)) for group in groups for rollout in group.rollouts
            ],
        }
        if self.selection is not None:
            scores = [group.scores[place] for group, place in self.selection.kept(self.groups)]
            found[f"{prefix}kept_reward"] = [one.reward for one in scores if isinstance(one, Score)]
        return {key: numbers for key, numbers in found.items() if numbers}

    def examples(self, most: int = MOST_PROMPTS) -> list[Example]:
        """A kept and a rejected answer of the first prompts with a kept one, then of others."""
        if self.selection is None:
            return [_example(group, 0, "held-out", "") for group in self.groups[:most] if group.rollouts]
        rows = list(self.selection.rows(self.groups))
        first = sorted(range(len(rows)), key=lambda number: not any(rows[number][1]))[:most]
        return [one for number in first for one in _kept_and_rejected(*rows[number])]

    def last_failure(self) -> str | None:
        """What a judge said last of an answer that it gave no score; None where it scored all."""
        failures = [one for group in self.groups for one in group.scores if isinstance(one, ScoreFailure)]
        return failures[-1].reason if failures else None


def _kept_and_rejected(group: Group, kept: Sequence[bool], reasons: Sequence[str]) -> Iterator[Example]:
    fates: tuple[tuple[Fate, bool], ...] = (("kept", True), ("rejected", False))
    for fate, wanted in fates:
        place = next((place for place, keep in enumerate(kept) if keep is wanted), None)
        if place is not None:
            yield _example(group, place, fate, reasons[place])


def _example(group: Group, place: int, fate: Fate, reason: str) -> Example:
    rollout, score = group.rollouts[place], group.scores[place]
    seen = group.watched[place] if group.watched else None
    return Example(
        group.prompt.text,
        rollout.text,
        fate,
        reason,
        score.reward if isinstance(score, Score) else None,
        "" if isinstance(score, Score) else score.reason,
        seen.reward if isinstance(seen, Score) else None,
        len(rollout.token_ids),
        rollout.finish_reason,
    )


class Logger(Protocol):
    """A sink of figures besides `metrics.jsonl`, such as TensorBoard's or W&B's of Lightning."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    def finalize(self, status: str) -> None: ...


@runtime_checkable
class ShowsRollouts(Protocol):
    """A sink that is also shown what a step sampled."""

    def log_rollouts(self, sampled: Sampled, step: int) -> None: ...


@runtime_checkable
class TakesSettings(Protocol):
    """A sink that is also told the settings of the run, by their dotted keys."""

    def log_hyperparams(self, params: Mapping[str, Any]) -> None: ...
