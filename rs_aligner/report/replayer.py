"""One alternative, shown the steps of a ledger: the selectors of a run, and what they keep.

Apart from `replay`, which has the words for it, since selectors bring torch, which nothing else of the room
needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rs_aligner.config import selection as conf
from rs_aligner.report.alternative import Alternative, judged_by
from rs_aligner.report.tally import Kept, Outcome, expected, kept_of, mean_of
from rs_aligner.rollout import Group
from rs_aligner.selection import KEPT, Chain, Progress, build_chain

_BY_ITSELF = (
    conf.AllConfig,
    conf.LengthConfig,
    conf.PositiveConfig,
    conf.ThresholdConfig,
    conf.TruncatedConfig,
)
"""Selectors that look at each rollout by itself, whatever else there is."""
_NOT_BEST = "not in the top n"


class Replayer:
    """Counts what an alternative keeps.

    Args:
        alternative: the settings.
        num_steps: of the whole run, for bars that rise.
    """

    def __init__(self, alternative: Alternative, num_steps: int) -> None:
        self.alternative, self.num_steps = alternative, num_steps
        self.outcome = Outcome(alternative.words)
        self._bars = _bars_before_the_best(alternative)
        self._chains = [self._chain()]  # one a part: each has a memory of its own

    @property
    def remembers(self) -> bool:
        """Whether a selector compares with earlier steps."""
        return self._chains[0].remembers

    def see(self, groups: Sequence[Group], step: int, *, counts: bool = True) -> None:
        """Select from a step's groups; where it does not count, for the memory of selectors only.

        Raises:
            ValueError: the step has fewer rollouts of a prompt than are asked for, or a part of the score is
                asked for that there is not.
        """
        size = self.alternative.num_rollouts
        if size is not None:
            groups = [group.only(_by_design(group)) for group in groups]
        widest = max((len(group.rollouts) for group in groups), default=0)
        if size is not None and size > widest:
            raise ValueError(f"--rollouts {size}: step {step} has {widest} rollouts of a prompt by design")
        judged = [judged_by(group, self.alternative.component) for group in groups]
        pool = self.alternative.rs.pool
        progress = Progress(step, self.num_steps, 0, pool.improve_steps)
        before, self.outcome = self.outcome, self.outcome if counts else Outcome("")
        self.outcome.num_rollouts = max(self.outcome.num_rollouts, size or widest)
        if size is None or size == widest:
            self.outcome.how = "all that were recorded"
            self._cut(groups, judged, widest, progress)
        elif self._bars is not None:
            self.outcome.how = f"all choices of {size} of {widest}"
            self._expect(groups, judged, size, progress)
        else:
            self.outcome.how = f"{widest // size} parts of {size}"
            self._cut(groups, judged, size, progress)
        self.outcome = before

    def _expect(
        self, groups: Sequence[Group], judged: Sequence[Group], size: int, progress: Progress
    ) -> None:
        """Count expectations over all choices of so many rollouts of each group."""
        assert self._bars is not None
        bars, top = self._bars
        selection = bars.select(judged, progress)
        for group, as_judged, row in zip(groups, judged, selection.reasons, strict=True):
            eligible = [place for place, reason in enumerate(row) if reason == KEPT]
            drawn = min(size, len(group.rollouts))
            kept = expected(group, as_judged, eligible, drawn, top)
            self.outcome.count(kept)
            share = drawn / len(group.rollouts)
            counts = {reason: share * number for reason, number in Counter(row).items() if reason != KEPT}
            self.outcome.explain(counts | {_NOT_BEST: share * len(eligible) - kept.kept})

    def _cut(self, groups: Sequence[Group], judged: Sequence[Group], size: int, progress: Progress) -> None:
        """Cut each group by index into parts of so many rollouts, and count the mean over its parts."""
        num_parts = max((len(group.rollouts) // size for group in groups), default=0) if size else 0
        while len(self._chains) < num_parts:
            self._chains.append(self._chain())
        found: list[list[tuple[Kept, Counter[str]]]] = [[] for _ in groups]
        for part, chain in enumerate(self._chains[:num_parts]):
            places = range(part * size, (part + 1) * size)
            # A group with fewer rollouts than the others is its own first part.
            here = [n for n, group in enumerate(groups) if not part or len(group.rollouts) >= places.stop]
            some = [groups[n].only([p for p in places if p < len(groups[n].rollouts)]) for n in here]
            as_judged = [judged[n].only([p for p in places if p < len(groups[n].rollouts)]) for n in here]
            selection = chain.select(as_judged, progress)
            chain.remember(as_judged, selection)
            for n, one, other, (_, keep, why) in zip(
                here, some, as_judged, selection.rows(as_judged), strict=True
            ):
                kept = kept_of(one, other, [place for place, flag in enumerate(keep) if flag])
                found[n].append((kept, Counter(why)))
        for parts in found:
            if parts:
                self.outcome.count(mean_of([kept for kept, _ in parts]))
                for _, reasons in parts:
                    counts = {why: number / len(parts) for why, number in reasons.items() if why != KEPT}
                    self.outcome.explain(counts)

    def _chain(self) -> Chain:
        rs = self.alternative.rs
        return build_chain(rs.selection, top_n=rs.top_n_rollouts, min_reward=rs.min_reward)


def _bars_before_the_best(alternative: Alternative) -> tuple[Chain, int] | None:
    """What says who may be kept, and how many of these are; None where a chain is of another form."""
    rs = alternative.rs
    everyone = conf.AllConfig(name="all")
    if not rs.selection:
        bar = rs.min_reward
        asked = everyone if bar is None else conf.ThresholdConfig(name="threshold", at_least=bar)
        return build_chain([asked], top_n=1), rs.top_n_rollouts
    *bars, last = rs.selection
    if not isinstance(last, conf.TopKConfig) or not all(isinstance(bar, _BY_ITSELF) for bar in bars):
        return None
    return build_chain(bars or [everyone], top_n=1), last.with_top_n(rs.top_n_rollouts).num


def _by_design(group: Group) -> list[int]:
    return [place for place, rollout in enumerate(group.rollouts) if rollout.by_design]
