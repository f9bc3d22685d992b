"""What ends a run that could not go on: a judge that has failed too much, and ranks that do not agree.

The rule of the one, with the reasons counted; the other is found in `agreement`. A few failed scores reject a
few rollouts. Many make what is left a sample of what the judge happened to answer, and a policy trained on it
a worse one, so then the run stops.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from rs_aligner.config import RemoteRMConfig
from rs_aligner.rollout import Group, ScoreFailure

_logger = logging.getLogger("rs_aligner")
_SHOWN_REASONS = 5


class RanksDiffer(RuntimeError):
    """The ranks came to different things, and nothing was trained on them; every rank raises it."""


def judge_failure(groups: Sequence[Group], config: RemoteRMConfig, what: str) -> str | None:
    """Decide whether a step, or a validation, has enough scores; what is missing is logged.

    Args:
        groups: all of the step's groups, so that every rank decides the same.
        config: `on_failure` and `max_failed_fraction` are read.
        what: what was scored, for the message.

    Returns:
        None if it has, else one line: how many have none, by which rule that is too many, and the reasons
        with their counts.
    """
    reasons = [score.reason for group in groups for score in group.scores if isinstance(score, ScoreFailure)]
    failed, total = len(reasons), sum(len(group.scores) for group in groups)
    if not failed:
        return None
    counted = count_reasons(reasons)
    if failed == total:
        return f"{what}: the judge scored none of {total} rollouts: {counted}"
    missing = f"{what}: {failed} of {total} rollouts have no score"
    if config.on_failure == "abort":
        return f"{missing}, and remote_rm.on_failure is abort: {counted}"
    if failed > config.max_failed_fraction * total:
        share = config.max_failed_fraction
        return f"{missing}, more than remote_rm.max_failed_fraction = {share:g} of them: {counted}"
    _logger.warning("%s and are rejected: %s", missing, counted)
    return None


def count_reasons(reasons: Sequence[str]) -> str:
    """`3 x this, 1 x that`; where there are many, the most frequent ones."""
    counts = Counter(reasons)
    most = list(counts.items()) if len(counts) <= _SHOWN_REASONS else counts.most_common(_SHOWN_REASONS)
    shown = [f"{count} x {reason}" for reason, count in most]
    rest = len(reasons) - sum(count for _, count in most)
    return ", ".join([*shown, f"{rest} x other reasons"] if rest else shown)
