"""Whether the best of N lie in a tail that only one judge sees: where others place them, and an alarm.

Best-of-N goes where its judge's scores are highest, and so to its blind spots. What another judge finds of
the rollouts there says whether they are better at all: as long as both see the same, it places them above
the rest of their group; in a tail that only the one sees, where chance would. `tail_metrics` measures that
in a step, `Tails` compares it over the steps of a run.

Left out on purpose: a bar for how much two judges should agree. Judges that are noisy agree little all the
time; only a fall says that the policy has come to where one of them is blind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, NamedTuple

from rs_aligner.midranks import midranks
from rs_aligner.proof.chance import kept_rows
from rs_aligner.rollout import Group, Score

if TYPE_CHECKING:
    from rs_aligner.selection import Selection  # brings torch, which is not needed here

WATCHED = "watched"
FALSE_ALARMS = 0.01  # of runs in which nothing changes, for each judge


class Placed(NamedTuple):
    """A group's rollouts as two sides see them.

    Attributes:
        best: which of them the one side takes for the best.
        own: its scores.
        seen: what the other side makes of each; only the order counts.
    """

    best: Sequence[bool]
    own: Sequence[float]
    seen: Sequence[float]


def tail_metrics(
    groups: Sequence[Group], selection: Selection, judges: Sequence[str] = ()
) -> dict[str, float]:
    """Where others place what a judge finds best, in a step.

    Args:
        groups: all groups of the step.
        selection: a row per group.
        judges: components of the scores that judge the same thing, as `pessimistic` has them.

    Returns:
        `tail/watched`: where the watched judge places the kept; `tail/<name>` for each of `judges`: where the
        others (by their mean rank) place the best by it. From -1 (below all others of their group) over 0
        (where chance would) to 1 (above all), mean over the groups in which both sides tell rollouts apart.
        With `_error`, its standard deviation if the other side's order had nothing to do with it (exact, from
        the ranks), and `_gap`, by how much the judge itself finds them better than their group's mean. Absent
        with fewer than two such groups.
    """
    found = _figures(WATCHED, map(_watched, groups, kept_rows(groups, selection)))
    for name in judges:
        others = [other for other in judges if other != name]
        found |= _figures(name, (_by_judge(group, name, others) for group in groups))
    return found


def _watched(group: Group, kept: Sequence[bool]) -> Placed:
    rows = zip(kept, group.scores, group.watched_scores(), strict=True)
    both = [(k, s.reward, w.reward) for k, s, w in rows if isinstance(s, Score) and isinstance(w, Score)]
    return Placed([k for k, *_ in both], [own for _, own, _ in both], [seen for *_, seen in both])


def _by_judge(group: Group, name: str, others: Sequence[str]) -> Placed:
    scores = [score for score in group.scores if isinstance(score, Score)]
    views = [[score.component(one) for one in (name, *others)] for score in scores]
    rows = [[value for value in row if value is not None] for row in views if None not in row]
    if not rows:
        return Placed((), (), ())
    own, *columns = zip(*rows, strict=True)
    ranks = [midranks(column) for column in columns]
    return Placed([value == max(own) for value in own], own, [sum(seen) for seen in zip(*ranks, strict=True)])


def _figures(name: str, groups: Iterable[Placed]) -> dict[str, float]:
    places: list[float] = []
    variances: list[float] = []
    gaps: list[float] = []
    for group in groups:
        size, number = len(group.best), sum(group.best)
        if not 0 < number < size or min(group.seen) == max(group.seen):
            continue
        ranks, middle, most = midranks(group.seen), (size + 1) / 2, (size - number) / 2
        best = [rank for rank, is_best in zip(ranks, group.best, strict=True) if is_best]
        places.append((fmean(best) - middle) / most)
        spread = fmean((rank - middle) ** 2 for rank in ranks)
        variances.append(spread * (size - number) / (number * (size - 1)) / most**2)  # drawn without return
        own = [value for value, is_best in zip(group.own, group.best, strict=True) if is_best]
        gaps.append(fmean(own) - fmean(group.own))
    if len(places) < 2:
        return {}
    key, error = f"tail/{name}", math.sqrt(math.fsum(variances)) / len(places)
    return {key: fmean(places), f"{key}_error": error, f"{key}_gap": fmean(gaps)}


@dataclass(frozen=True, slots=True)
class _Look:
    step: int
    place: float
    error: float
    gap: float


class Tails:
    """Notices that the best by a judge have come to where no other judge sees them.

    The step at which others placed the best by a judge highest is the one to compare with. The alarm is
    raised when they place them less than half as high, significantly, while the judge itself still finds them
    better by at least half as much: where both sides only run out of differences, its own gap closes, too.

    Significant is a z that grows with the number of steps t: of `FALSE_ALARMS`, each pair of steps of which
    the t-th is the later has a share of `6 / (pi^2 t^2 (t - 1))`, which come to 1 over all pairs (union
    bound). So a run in which nothing changes has an alarm with a probability of at most 1 %, as far as means
    over groups are normal, however long it is.
    """

    def __init__(self) -> None:
        self._judges: dict[str, _Tail] = {}

    def observe(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in the figures of a step, in order.

        Returns:
            A warning for each judge whose tail the others have lost sight of since the last step.
        """
        found = []
        for key in metrics:
            if key.startswith("tail/") and key.endswith("_gap"):
                name = key.removeprefix("tail/").removesuffix("_gap")
                place, error = (metrics[f"tail/{name}{figure}"] for figure in ("", "_error"))
                tail = self._judges.setdefault(name, _Tail())
                since = tail.observe(_Look(int(metrics["step"]), place, error, metrics[key]))
                if since is not None:
                    found.append(_warning(name, since, tail.last))
        return found

    @property
    def lost(self) -> list[str]:
        """Judges whose tail the others do not see now."""
        return [name for name, tail in self._judges.items() if tail.is_lost]

    @property
    def places(self) -> dict[str, tuple[float, float]]:
        """Where others placed the best by each judge: at the step to compare with, and at the last one."""
        return {name: (tail.best.place, tail.last.place) for name, tail in self._judges.items()}


class _Tail:
    def __init__(self) -> None:
        self.is_lost = False
        self.last = self.best = _Look(0, -math.inf, 0.0, 0.0)
        self._number = 0

    def observe(self, now: _Look) -> _Look | None:
        """Take in a step; returns the one that it is compared with where that brings the alarm."""
        self._number, self.last = self._number + 1, now
        best = self.best
        if now.place >= min(best.place, best.place / 2):
            self.is_lost = False
        if now.place >= best.place:
            self.best = now
            return None
        fall, error = best.place / 2 - now.place, math.hypot(best.error / 2, now.error)
        if self.is_lost or now.gap < best.gap / 2 or fall <= _significant(self._number) * error:
            return None
        self.is_lost = True
        return best


def _significant(number: int) -> float:
    """How many standard errors are significant at the step of this number, from 2."""
    share = FALSE_ALARMS * 6 / (math.pi**2 * number**2 * (number - 1))
    return -NormalDist().inv_cdf(share)


def _warning(name: str, then: _Look, now: _Look) -> str:
    if name == WATCHED:
        where, what = "the watched judge places what is kept", "the judge finds it"
        helps = "keep what two judges find good (pessimistic), stop early, or add an anchor or a KL term"
    else:
        where, what = f"others place the best by {name}", f"{name} finds them"
        helps = "pessimistic passes them over; mend that judge"
    return (
        f"the best of N lie in a tail that only one judge sees: {where} at {now.place:.2f} now, at "
        f"{then.place:.2f} at step {then.step} (1 is above all others, 0 as by chance), but {what} better "
        f"than the mean by {now.gap:.4g}, {then.gap:.4g} then; {helps}: docs/metrics.md"
    )
