"""Whether selection helps, measured in every step: what was kept against what chance would have kept.

Figures that follow from a step's groups and selection alone: the matched random control, best-of-k and
pass@k, what the judge can decide, and how the kept rollouts differ from all of them in length, likelihood
and variety. Groups may differ in size. What is undefined, such as the control of a step that kept nothing,
is absent; no figure is ever NaN.

A million tokens (512 prompts, 8 rollouts, 256 tokens) cost about 0.3 CPU seconds, nearly all for sorting
n-grams. docs/metrics.md says of each key what it means. Left out on purpose: loss, times and validation (the
trainer), the closed forms (`estimates`), a second judge (`watched`), and everything that needs a model: the
caller brings log-probabilities under the starting policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rs_aligner.proof.estimates import (
    best_of_k,
    pass_at_k,
    powers_of_two,
    random_choice,
    reported_ks,
    top_k_divergence,
)
from rs_aligner.rollout import Group, Rollout, Score

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which is not needed here

Ints = npt.NDArray[np.int64]
_LONGEST_NGRAM = 3


def proof_metrics(
    groups: Sequence[Group], selection: Selection, *, passed_above: float = 0.0, is_all: bool = True
) -> dict[str, float]:
    """All figures of a step that need nothing but its rollouts, scores and selection.

    They are unbiased where the number of a group's rollouts does not depend on scores, its own or others'.

    Args:
        groups: all groups of the step, in data order; of any size.
        selection: a row per group; what stands beyond a group's rollouts is not looked at.
        passed_above: a rollout has passed if its reward is above this (`model.rs.passed_above`).
        is_all: whether these are all that the step chose from. Of a part, how far keeping the best of it
            moves a distribution says nothing of the step, and `kl/best_of_n` is absent.

    Returns:
        Keys and formulas are in docs/metrics.md. What is undefined is absent.

    Raises:
        ValueError: the selection has another number of groups, or fewer places than a group has rollouts.
    """
    keep = kept_rows(groups, selection)
    rewards = [[s.reward for s in group.scores if isinstance(s, Score)] for group in groups]
    passed = [[s.exceeds(passed_above) for s in group.scores if isinstance(s, Score)] for group in groups]
    kept_rewards = [
        [s.reward for s, is_kept in zip(group.scores, row, strict=True) if is_kept and isinstance(s, Score)]
        for group, row in zip(groups, keep, strict=True)
    ]
    everyone = [rollout for group in groups for rollout in group.rollouts]
    chosen = [
        rollout
        for group, row in zip(groups, keep, strict=True)
        for rollout, is_kept in zip(group.rollouts, row, strict=True)
        if is_kept
    ]
    return {
        **control_metrics(rewards, kept_rewards, is_all=is_all),
        **best_of_metrics(rewards),
        **pass_metrics(rewards, passed),
        **_shift_metrics(everyone, chosen),
        **variety_metrics(groups, chosen),
    }


def kept_rows(groups: Sequence[Group], selection: Selection) -> list[list[bool]]:
    """The keep mask as lists, each as long as its group.

    Raises:
        ValueError: as `proof_metrics`.
    """
    rows: list[list[bool]] = selection.keep.tolist()
    if len(rows) != len(groups):
        raise ValueError(f"the selection has {len(rows)} rows for {len(groups)} groups")
    for number, (group, row) in enumerate(zip(groups, rows, strict=True)):
        if len(row) < len(group.rollouts):
            raise ValueError(
                f"group {number} has {len(group.rollouts)} rollouts, the selection {len(row)} places"
            )
    return [row[: len(group.rollouts)] for group, row in zip(groups, rows, strict=True)]


def control_metrics(
    rewards: Sequence[Sequence[float]], kept_rewards: Sequence[Sequence[float]], *, is_all: bool = True
) -> dict[str, float]:
    """What was kept against a choice at random of as many rollouts of each group, and against the best.

    Args:
        rewards: of the scored rollouts of each group.
        kept_rewards: of those that were kept.
        is_all: as of `proof_metrics`.
    """
    everything = list(chain.from_iterable(rewards))
    kept = list(chain.from_iterable(kept_rewards))
    pairs = list(zip(rewards, kept_rewards, strict=True))
    control = random_choice((all_of_it, len(part)) for all_of_it, part in pairs)
    if control is None:
        return {}
    random_mean, random_std = control
    kept_mean = fmean(kept)
    metrics = {
        "control/random_mean": random_mean,
        "control/random_std": random_std,
        "reward/kept_minus_mean": kept_mean - fmean(everything),
        "reward/headroom": fmean(max(all_of_it) - reward for all_of_it, part in pairs for reward in part),
    }
    if is_all:
        metrics["kl/best_of_n"] = fmean(
            top_k_divergence(len(all_of_it), len(part)) for all_of_it, part in pairs if part
        )
    # Where all scores of a group are equal there is no choice, and the deviation is rounding.
    if random_std > 1e-12 * max(1.0, *map(abs, everything)):
        metrics["control/z"] = (kept_mean - random_mean) / random_std
    return metrics


def best_of_metrics(rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """`best_of/k`: the expected best of k rollouts, mean over the groups with at least k scores."""
    by_size: dict[int, list[Sequence[float]]] = {}
    for scores in rewards:
        by_size.setdefault(len(scores), []).append(scores)
    ks = reported_ks(max(by_size, default=0))
    sums, counts = dict.fromkeys(ks, 0.0), dict.fromkeys(ks, 0)
    for size, same_size in by_size.items():
        fitting = [k for k in ks if k <= size]
        for scores in same_size:
            for k, value in zip(fitting, best_of_k(scores, fitting).tolist(), strict=True):
                sums[k] += value
                counts[k] += 1
    return {f"best_of/{k}": sums[k] / counts[k] for k in ks}


def pass_metrics(rewards: Sequence[Sequence[float]], passed: Sequence[Sequence[bool]]) -> dict[str, float]:
    """`pass_at/k`, and the shares of groups that the judge decides, that all pass and that none pass.

    Args:
        rewards: of the scored rollouts of each group.
        passed: whether each of them has passed.
    """
    counted = [(len(scores), sum(row)) for scores, row in zip(rewards, passed, strict=True) if scores]
    if not counted:
        return {}
    decided = [max(scores) > min(scores) for scores in rewards if scores]
    metrics = {
        "groups/all_passed": fmean(passed == num for num, passed in counted),
        "groups/none_passed": fmean(passed == 0 for _, passed in counted),
    }
    most = max(num for num, _ in counted)
    if most > 1:  # of one alone there is nothing to tell apart
        metrics["groups/decidable"] = fmean(decided)
    for k in powers_of_two(most):
        metrics[f"pass_at/{k}"] = fmean(pass_at_k(num, passed, k) for num, passed in counted if num >= k)
    return metrics


def _shift_metrics(everyone: Sequence[Rollout], chosen: Sequence[Rollout]) -> dict[str, float]:
    """Length and log-probability of the kept against all, and the entropy of the sampler."""
    metrics: dict[str, float] = {}
    log_prob, kept_log_prob = mean_log_prob(everyone), mean_log_prob(chosen)
    if log_prob is not None:
        metrics["entropy"] = -log_prob
    if log_prob is not None and kept_log_prob is not None:
        metrics["shift/log_prob"] = kept_log_prob - log_prob
    if chosen:
        metrics["shift/response_length"] = fmean(len(r.token_ids) for r in chosen) - fmean(
            len(r.token_ids) for r in everyone
        )
    return metrics


def mean_log_prob(rollouts: Sequence[Rollout]) -> float | None:
    """Mean over all tokens of all rollouts, under the policy that sampled them; None for no tokens.

    Rollouts that came without log-probabilities, such as those of a file, are left out.
    """
    with_them = [rollout.log_probs for rollout in rollouts if rollout.log_probs]
    num_tokens = sum(map(len, with_them))
    return math.fsum(chain.from_iterable(with_them)) / num_tokens if num_tokens else None


def kl_to_start(
    rollouts: Sequence[Rollout], reference_log_probs: Sequence[Sequence[float]]
) -> dict[str, float]:
    """`kl/to_start`: mean per token of the sampling policy's log-probability minus the starting policy's.

    Over tokens drawn at temperature 1 from all of the vocabulary it estimates, without bias, the divergence
    per token of the policy from the one it started from, in nats. A single step's may be below zero.

    Args:
        rollouts: with their log-probabilities.
        reference_log_probs: of the same tokens under the starting policy, a sequence for each rollout.

    Returns:
        Empty where there are no tokens.

    Raises:
        ValueError: the two do not fit together.
    """
    if len(rollouts) != len(reference_log_probs):
        raise ValueError(f"{len(reference_log_probs)} reference rows for {len(rollouts)} rollouts")
    total, num_tokens = 0.0, 0
    for rollout, reference in zip(rollouts, reference_log_probs, strict=True):
        if not len(rollout.token_ids) == len(rollout.log_probs) == len(reference):
            raise ValueError(
                f"group {rollout.group}, rollout {rollout.index}: {len(rollout.token_ids)} tokens, "
                f"{len(rollout.log_probs)} log-probabilities, {len(reference)} under the starting policy"
            )
        total += math.fsum(rollout.log_probs) - math.fsum(reference)
        num_tokens += len(reference)
    return {"kl/to_start": total / num_tokens} if num_tokens else {}


def variety_metrics(groups: Sequence[Group], chosen: Sequence[Rollout]) -> dict[str, float]:
    """Distinct n-grams of tokens among all and among the kept, and the share of exact duplicates."""
    metrics: dict[str, float] = {}
    everyone = [rollout for group in groups for rollout in group.rollouts]
    for name, rollouts in (("distinct/", everyone), ("distinct/kept_", chosen)):
        for size, share in enumerate(distinct_ngrams([r.token_ids for r in rollouts]), start=1):
            if share is not None:
                metrics[f"{name}{size}"] = share
    if everyone:
        different = sum(len({rollout.token_ids for rollout in group.rollouts}) for group in groups)
        metrics["duplicates/share"] = 1 - different / len(everyone)
    return metrics


def distinct_ngrams(sequences: Sequence[Sequence[int]]) -> tuple[float | None, ...]:
    """Distinct n-grams over all n-grams of all sequences, for n = 1, 2, 3; None where there are none.

    An n-gram lies in one sequence. The share falls as there is more text, so it is to be compared between
    equal amounts. Source: Li et al., "A diversity-promoting objective function" (2016), over tokens.
    """
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    tokens: Ints = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=int(lengths.sum()))
    # How many tokens of its sequence stand behind each one, so that no n-gram reaches into the next.
    behind: Ints = np.repeat(lengths.cumsum(), lengths) - 1 - np.arange(len(tokens))
    num_ids = int(tokens.max(initial=-1)) + 1
    if num_ids**_LONGEST_NGRAM > np.iinfo(np.int64).max:  # no vocabulary is so large, but ids may be
        _, tokens = np.unique(tokens, return_inverse=True)
        num_ids = int(tokens.max()) + 1
    shares: list[float | None] = []
    grams = tokens
    for size in range(1, _LONGEST_NGRAM + 1):
        if size > 1:
            grams = grams[:-1] * num_ids + tokens[size - 1 :]
        whole = grams[behind[: len(grams)] >= size - 1]
        whole.sort()
        num = len(whole)
        shares.append((1 + int(np.count_nonzero(whole[1:] != whole[:-1]))) / num if num else None)
    return tuple(shares)
