"""From what was kept to the rows to train on: what each rollout weighs, and what is mixed in.

A kept rollout weighs 1 in the plain recipe. With an advantage it weighs how much better it is than the other
rollouts of its prompt; the baseline is that of all scored rollouts of the group, whoever of them was kept.
Rows come in (prompt, rollout) order. Everything is a pure function of rewards and places, so every rank comes
to the same rows. Left out on purpose: advantages of tokens (a reward belongs to a whole response) and of the
whole batch, and reading the files of supervised rows (see `rs_aligner.data`). No torch is needed here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from rs_aligner.config.objective import ObjectiveConfig, num_anchors
from rs_aligner.rollout import Group, Rollout, Score, TrainingRow

if TYPE_CHECKING:
    from rs_aligner.selection import Selection

ADVANTAGE_EPS = 1e-6  # added to a group's deviation, as in verl


def advantages(
    rewards: Sequence[float | None], kind: Literal["none", "group", "leave_one_out"]
) -> list[float]:
    """How much better each rollout of a group is than the others.

    - `"none"`: 1 each.
    - `"group"`: `(reward - mean) / (std + 1e-6)`, over the group's scored rollouts, with the deviation of a
      sample (n - 1). Source: Shao et al., "DeepSeekMath" (2024), section 4.1.2 (GRPO).
    - `"leave_one_out"`: the reward minus the mean of the other scored ones. Source: Ahmadian et al., "Back to
      basics: revisiting REINFORCE style optimization" (2024), equation 8 (RLOO).

    Args:
        rewards: of a group, None where the judge failed.
        kind: `model.rs.objective.advantage`.

    Returns:
        A number for each rollout: 0 where there is no reward, and throughout where fewer than two were scored
        or all scored rewards are equal, since there is nothing to compare.
    """
    if kind == "none":
        return [1.0] * len(rewards)
    scored = [reward for reward in rewards if reward is not None]
    if len(scored) < 2 or min(scored) == max(scored):
        return [0.0] * len(rewards)
    mean, count = fmean(scored), len(scored)
    # Leaving one out: r - (n mean - r) / (n - 1) = (r - mean) n / (n - 1).
    scale = 1 / (stdev(scored) + ADVANTAGE_EPS) if kind == "group" else count / (count - 1)
    return [0.0 if reward is None else (reward - mean) * scale for reward in rewards]


def training_rows(
    groups: Sequence[Group],
    selection: Selection,
    config: ObjectiveConfig,
    *,
    version: int | None = None,
) -> list[TrainingRow]:
    """The kept rollouts in (prompt, rollout) order, each with its weight.

    Rows of weight 0 are dropped, since they have no gradient, and so are those whose weight is not above 0
    with `positives_only`. Rows have the sampler's log-probabilities where ratios are clipped.

    Args:
        groups: of the step; they may differ in size.
        selection: its `keep` is `[P, N_max]`; what stands beyond a group's size is not looked at.
        config: the objective.
        version: of the policy: rows that it sampled bring what its decoder noted; None where none did.

    Raises:
        ValueError: a rollout lacks the log-probabilities that clipped ratios need.
    """
    return [
        TrainingRow(
            groups[group].prompt.token_ids,
            rollout.token_ids,
            weight,
            _sampled(rollout) if config.clip is not None else (),
            decoder_log_probs=_noted(rollout) if rollout.policy_version == version else (),
        )
        for group, rollout, weight in _kept(groups, selection, config)
        if _has_signal(weight, config)
    ]


def objective_metrics(
    groups: Sequence[Group], selection: Selection, config: ObjectiveConfig
) -> dict[str, float]:
    """What the advantage made of a step; nothing without one, since nothing is weighed or dropped then.

    Returns:
        `objective/groups_without_signal`: groups whose scored rewards are all equal, or of which fewer than
        two were scored. `objective/dropped`: kept rollouts that `training_rows` leaves out.
    """
    if config.advantage == "none":
        return {}
    flat = sum(not any(advantages(_rewards(group), config.advantage)) for group in groups)
    dropped = sum(not _has_signal(weight, config) for _, _, weight in _kept(groups, selection, config))
    return {"objective/groups_without_signal": flat, "objective/dropped": dropped}


def with_reference(
    rows: Sequence[TrainingRow], reference_log_probs: Sequence[tuple[float, ...]]
) -> list[TrainingRow]:
    """The rows with what `policy.reference_log_probs(rows)` gave, for the KL term."""
    return [replace(row, reference_log_probs=x) for row, x in zip(rows, reference_log_probs, strict=True)]


def shuffled_anchors(rows: Sequence[TrainingRow], weight: float, seed: int) -> list[TrainingRow]:
    """Supervised rows as `mix` takes them: each of that weight, shuffled once, the same in every run."""
    shuffled = [replace(row, weight=weight) for row in rows]
    random.Random(seed).shuffle(shuffled)
    return shuffled


def mix(
    rows: Sequence[TrainingRow], anchors: Sequence[TrainingRow], share: float, start: int
) -> tuple[list[TrainingRow], int]:
    """Spread supervised rows evenly among the rows of a step.

    Of any `n` neighbours, `n` times the supervised share of the whole are supervised, give or take one; so
    that holds of every batch, wherever it is cut. A step without rows stays empty.

    Args:
        rows: of the step; they keep their order.
        anchors: the supervised rows, taken in order, from the front again after the last.
        share: of the result that is to be supervised, from 0 to below 1.
        start: the place in `anchors` to begin at: 0, or where the step before went on from.

    Returns:
        The mixed rows, and the place to go on from, which belongs in a checkpoint's counters.

    Raises:
        ValueError: a share that is out of range, or above 0 without anchors.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be at least 0 and below 1, not {share}")
    if share and not anchors:
        raise ValueError("model.rs.objective.anchor: there are no rows to mix in; name other files")
    count = num_anchors(len(rows), share)
    total, mine, mixed = len(rows) + count, iter(rows), []
    for place in range(total):
        before = place * count // total
        if (place + 1) * count // total > before:
            mixed.append(anchors[(start + before) % len(anchors)])
        else:
            mixed.append(next(mine))
    return mixed, (start + count) % len(anchors) if anchors else start


def _kept(
    groups: Sequence[Group], selection: Selection, config: ObjectiveConfig
) -> list[tuple[int, Rollout, float]]:
    """The kept rollouts with their group's place and their weight."""
    keep_PN = selection.keep.tolist()
    return [
        (place, rollout, weight)
        for place, group in enumerate(groups)
        for keep, rollout, weight in zip(
            keep_PN[place],  # as wide as the largest group
            group.rollouts,
            advantages(_rewards(group), config.advantage),
            strict=False,
        )
        if keep
    ]


def _rewards(group: Group) -> list[float | None]:
    return [score.reward if isinstance(score, Score) else None for score in group.scores]


def _has_signal(weight: float, config: ObjectiveConfig) -> bool:
    return weight > 0 or (weight < 0 and not config.positives_only)


def _sampled(rollout: Rollout) -> tuple[float, ...]:
    if len(rollout.log_probs) != len(rollout.token_ids):
        raise ValueError(
            "model.rs.objective.clip needs the log-probability of each sampled token, but rollout "
            f"{rollout.index} of group {rollout.group} has {len(rollout.log_probs)} for "
            f"{len(rollout.token_ids)} tokens; set clip to null for rollouts that came without"
        )
    return rollout.log_probs


def _noted(rollout: Rollout) -> tuple[float, ...]:
    """Of each token; none where they are not whole, since there is nothing to compare then."""
    is_whole = len(rollout.log_probs) == len(rollout.token_ids) and all(map(math.isfinite, rollout.log_probs))
    return rollout.log_probs if is_whole else ()
