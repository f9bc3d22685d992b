r"""Choosing one of N answers: the best-scored, or the one whose final answer most of them come to.

Pure functions of texts and scores. An answer votes for its final answer (what is in `\boxed{}`, what follows
`####`, else the last number, else its first line; see `answers`); one that comes to nothing abstains. All
ties go to the answer that came first. Left out on purpose: sampling and judging (`sample`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rs_aligner.answers import Undecided, final_answer, final_answers, is_right
from rs_aligner.config.generate import Choice
from rs_aligner.precision import PRECISIONS
from rs_aligner.proof.chance import best_of_metrics
from rs_aligner.proof.estimates import powers_of_two
from rs_aligner.rollout import Group, Score


@dataclass(frozen=True, slots=True)
class Chosen:
    """One of a prompt's N answers.

    Attributes:
        index: which; None if nothing could be chosen.
        votes: what each final answer got, the most first; empty where there was no vote.
    """

    index: int | None
    votes: dict[str, float] = field(default_factory=dict)


def best(rewards: Sequence[float | None]) -> Chosen:
    """The highest reward; None stands for an answer without a score."""
    scored = [(reward, -index) for index, reward in enumerate(rewards) if reward is not None]
    return Chosen(-max(scored)[1] if scored else None)


def majority(answers: Sequence[str]) -> Chosen:
    """The final answer that comes most often; an empty one is not counted.

    Source: Wang et al., "Self-consistency improves chain of thought reasoning" (2022).
    """
    return _vote(answers, [1.0] * len(answers))


def weighted(answers: Sequence[str], rewards: Sequence[float | None]) -> Chosen:
    """The final answer whose rewards have the highest sum; an answer without a score is not counted.

    Rewards should not be negative, since a wrong answer would then lose by coming often.
    Source: Li et al., "Making language models better reasoners with step-aware verifier" (2023).
    """
    return _vote(answers, rewards)


def _vote(answers: Sequence[str], weights: Sequence[float | None]) -> Chosen:
    votes: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer and weight is not None:
            votes[answer] = votes.get(answer, 0.0) + weight
    if not votes:
        return Chosen(None)
    ranked = dict(sorted(votes.items(), key=lambda item: -item[1]))  # stable: the first of equals stays first
    counted = [a if w is not None else "" for a, w in zip(answers, weights, strict=True)]
    return Chosen(counted.index(next(iter(ranked))), ranked)


def choose(how: Choice, answers: Sequence[str], rewards: Sequence[float | None]) -> Chosen:
    """One of the answers to a prompt, as `how` says."""
    match how:
        case "first":
            return Chosen(0 if answers else None)
        case "best":
            return best(rewards)
        case "majority":
            return majority(answers)
        case "weighted":
            return weighted(answers, rewards)


def rewards_of(group: Group) -> list[float | None]:
    """A reward for each rollout; None where the judge failed."""
    return [score.reward if isinstance(score, Score) else None for score in group.scores]


def answer_row(group: Group, how: Choice) -> dict[str, Any]:
    """A prompt's row of the file that is written.

    `text`, `responses` and `rewards` are what `model.rs.offline` reads, so the file can be trained on.
    """
    answers = final_answers([rollout.text for rollout in group.rollouts])
    chosen = choose(how, answers, rewards_of(group))
    row: dict[str, Any] = {
        "id": group.prompt.id,
        "text": group.prompt.text,
        "chosen": chosen.index,
        "response": None if chosen.index is None else group.rollouts[chosen.index].text,
        "responses": [rollout.text for rollout in group.rollouts],
        "rewards": rewards_of(group),
        "finish_reasons": [rollout.finish_reason for rollout in group.rollouts],
        "num_tokens": [len(rollout.token_ids) for rollout in group.rollouts],
        "log_probs": [sum(rollout.log_probs) for rollout in group.rollouts],
        "metadata": group.prompt.metadata,
    }
    types = {score.precision for score in group.scores if isinstance(score, Score)}
    if types - {"float64"}:
        row["reward_dtype"] = min(types, key=PRECISIONS.index)
    if chosen.votes:
        row |= {"answers": answers, "votes": chosen.votes}
    if any(isinstance(score, Score) and score.components for score in group.scores):
        row["components"] = [s.components if isinstance(s, Score) else None for s in group.scores]
    return row


def accuracies(groups: Sequence[Group], answer_key: str, *, judged: bool) -> dict[str, float]:
    """Share of prompts that each way to choose gets right, over the prompts that have a reference.

    `one answer` is the mean over all answers, `any answer` what the best choice could reach. An answer is
    right as `final_answer` of the judges sees it.

    Args:
        groups: sampled and, if `judged`, scored.
        answer_key: of the reference in a prompt's row.
        judged: whether the choices that need rewards are looked at.
    """
    hits: dict[str, list[float]] = {}
    for group in groups:
        reference = group.prompt.metadata.get(answer_key)
        if reference is None or not group.rollouts:
            continue
        right = [_is_right(group.prompt.text, rollout.text, str(reference)) for rollout in group.rollouts]
        answers, rewards = [final_answer(rollout.text) for rollout in group.rollouts], rewards_of(group)
        hits.setdefault("one answer", []).append(fmean(right))
        ways: tuple[Choice, ...] = ("majority", "weighted", "best") if judged else ("majority",)
        for way in ways:
            index = choose(way, answers, rewards).index
            hits.setdefault(way, []).append(float(index is not None and right[index]))
        hits.setdefault("any answer", []).append(float(any(right)))
    return {name: fmean(values) for name, values in hits.items()}


def _is_right(prompt: str, response: str, reference: str) -> bool:
    """Whether an answer is certainly right."""
    try:
        return is_right(response, reference, prompt)
    except Undecided:
        return False


def summary(groups: Sequence[Group], *, judged: bool, answer_key: str = "answer") -> str:
    """What was found, in some lines; what is unknown is left out.

    The mean reward, the expected best of k answers (which is pass@k for a judge that says 0 or 1), and the
    shares of `accuracies`.
    """
    lines = []
    rewards = [[r for r in rewards_of(group) if r is not None] for group in groups]
    flat = [reward for row in rewards for reward in row]
    number = sum(len(group.rollouts) for group in groups)
    if judged:
        mean = f"mean reward {fmean(flat):.4f}" if flat else "no reward"
        lines.append(f"{mean} ({len(flat):,} of {number:,} answers scored)")
    if flat:
        found = best_of_metrics(rewards)
        table = ", ".join(f"{k}: {found[f'best_of/{k}']:.4f}" for k in powers_of_two(max(map(len, rewards))))
        lines.append(("pass@k     " if set(flat) <= {0.0, 1.0} else "best of k  ") + table)
    right = accuracies(groups, answer_key, judged=judged and bool(flat))
    if right:
        lines.append("right      " + ", ".join(f"{name} {share:.1%}" for name, share in right.items()))
    return "\n".join(lines)
