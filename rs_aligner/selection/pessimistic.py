"""A choice that distrusts the judge: by a score that is lowered where those who judge disagree.

What is best of many by one judge lies in that judge's tail, and its blind spots lie there, too; a judge with
other blind spots sees nothing there. Of several judges a rollout counts as the lowest of their views
(worst-case optimisation), or as their mean less their spread (uncertainty-weighted: there the variance, here
the standard deviation, which is in the judges' unit); of one judge that was asked several times, as its score
less its own spread. Source: Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv
2310.02743); Eisenstein et al. (2312.09244) show what it cannot do: a blind spot that all of them share stays.

Left out on purpose: asking a second judge (`judge.parts`), and weights of judges. The watched judge takes no
part, or nobody would be left to watch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Literal

from rs_aligner.config.pessimistic import PessimisticConfig
from rs_aligner.midranks import midranks
from rs_aligner.rollout import Group, Score
from rs_aligner.selection.base import GroupSelector, Places, Progress, Selector, reward, score

Views = list[list[list[float]]]
"""What each judge says of each rollout that is left: `[P][J][N]`, groups, judges and places in order."""


def links(config: PessimisticConfig, key: str) -> list[Selector]:
    """The selectors of a section: what lacks a component is rejected first, with a reason of its own."""
    if config.disagreement is not None:
        times = 1.0 if config.coefficient is None else config.coefficient
        has = HasComponents(f"{key}.disagreement", [config.disagreement])
        return [has, LessDisagreement(config.num, config.disagreement, times)]
    names = config.components
    return [
        HasComponents(f"{key}.components", names),
        Pessimistic(config.num, names, config.scale, config.coefficient),
    ]


class HasComponents(GroupSelector):
    """Rejects scores that lack a component.

    Args:
        key: the config key that names them, for errors.
        names: of components.
    """

    def __init__(self, key: str, names: Sequence[str]) -> None:
        self._key, self._names = key, tuple(names)
        self.reason = f"score without {' or '.join(names)}"

    def select(self, groups: Sequence[Group], left: Sequence[Places], progress: Progress) -> Sequence[Places]:
        """What has all components.

        Raises:
            ValueError: no score of the whole step has a component of that name.
        """
        scores = [one for group in groups for one in group.scores if isinstance(one, Score)]
        for name in self._names:
            if scores and all(one.component(name) is None for one in scores):
                known = ", ".join(sorted({"reward", *(name for one in scores for name in one.components)}))
                raise ValueError(
                    f"{self._key}: no score has the component {name!r}; this judge's are {known}"
                )
        return super().select(groups, left, progress)

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What has all of them."""
        return [p for p in left if all(score(group, p).component(name) is not None for name in self._names)]


class LessDisagreement(GroupSelector):
    """The `k` best of each group by reward less what the judge says of its own disagreement.

    Args:
        k: how many of a group.
        name: the component that is its disagreement, in the reward's unit, such as a standard deviation.
        coefficient: how many of it are taken off.
    """

    reason = "not in the pessimistic top n"

    def __init__(self, k: int, name: str, coefficient: float) -> None:
        self.k, self._name, self._coefficient = k, name, coefficient

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """The best of the group; ties go to the higher reward, then to the lower index."""

        def order(place: int) -> tuple[float, float, int]:
            one = score(group, place)
            return self._coefficient * _seen(one, self._name) - one.reward, -one.reward, place

        return sorted(left, key=order)[: self.k]


class Pessimistic(Selector):
    """The `k` best of each group by the views of several judges, taken pessimistically.

    With two judges, the lowest is the mean less one standard deviation. Ties go to the higher mean, then to
    the higher reward, then to the lower index.

    Args:
        k: how many of a group.
        names: components, each a judge of the same thing.
        scale: `rank` within the group, from 1 for the worst of those left, equal values sharing the mean of
            theirs: outliers of one judge do not move what it says of others, and each judge may have a scale
            of its own. `zscore`: less the mean of the group, over the judge's standard deviation within the
            groups of the step. `none`: as they are, for judges in the same unit.
        coefficient: standard deviations that are taken off the mean of the views; None takes the lowest.
    """

    reason = "not in the pessimistic top n"

    def __init__(
        self,
        k: int,
        names: Sequence[str],
        scale: Literal["rank", "zscore", "none"] = "rank",
        coefficient: float | None = None,
    ) -> None:
        self.k, self._names, self._coefficient = k, tuple(names), coefficient
        self._scaled = SCALES[scale]

    def select(self, groups: Sequence[Group], left: Sequence[Places], progress: Progress) -> Sequence[Places]:
        """The best of each group."""
        views = [
            [[_seen(score(group, place), name) for place in places] for name in self._names]
            for group, places in zip(groups, left, strict=True)
        ]
        scaled = self._scaled(views)
        return [self._best(*one) for one in zip(groups, left, scaled, strict=True)]

    def _best(self, group: Group, places: Places, views: Sequence[Sequence[float]]) -> Places:
        order = [
            (-self._worth(seen), -fmean(seen), -reward(group, place), place)
            for seen, place in zip(zip(*views, strict=True), places, strict=True)
        ]
        return sorted(place for *_, place in sorted(order)[: self.k])

    def _worth(self, seen: Sequence[float]) -> float:
        if self._coefficient is None:
            return min(seen)
        return fmean(seen) - self._coefficient * pstdev(seen)


def _seen(one: Score, name: str) -> float:
    found = one.component(name)
    assert found is not None, "HasComponents comes first"
    return found


def _by_rank(views: Views) -> Views:
    return [[midranks(values) for values in group] for group in views]


def _by_zscore(views: Views) -> Views:
    """Each judge's values less their group's mean, over the standard deviation of all that is left so."""
    centred = [[[value - fmean(values) for value in values] for values in group] for group in views]
    if not centred:
        return []
    every = [[value for group in centred for value in group[judge]] for judge in range(len(centred[0]))]
    widths = [math.sqrt(fmean([v * v for v in values])) if values else 0.0 for values in every]
    return [
        [[v / width if width else 0.0 for v in values] for values, width in zip(group, widths, strict=True)]
        for group in centred
    ]


SCALES: Mapping[str, Callable[[Views], Views]] = {
    "rank": _by_rank,
    "zscore": _by_zscore,
    "none": lambda views: views,
}
"""How the views of several judges are made comparable."""
