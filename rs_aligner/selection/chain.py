"""The chain of selectors that the config names, each narrowing what the one before it left.

Without any it is the plain recipe: `model.rs.min_reward` as a bar, then the best `model.rs.top_n_rollouts`.
Left out on purpose: branches. What joins two selections by "or" is a user's function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rs_aligner.config import RSConfig
from rs_aligner.config import selection as conf
from rs_aligner.config.selector import SelectorSection
from rs_aligner.rollout import Group, Score
from rs_aligner.selection import bars, distinct, filters, pessimistic
from rs_aligner.selection.base import Places, Progress, Selector
from rs_aligner.selection.result import KEPT, NOT_SCORED, Selection, selection_of

AnySection = TypeVar("AnySection", bound=SelectorSection)


class Chain:
    """Selectors in a row.

    Args:
        selectors: in the order in which they are asked; none of them keeps all that was scored.
    """

    def __init__(self, selectors: Sequence[Selector]) -> None:
        self.selectors = tuple(selectors)

    def select(self, groups: Sequence[Group], progress: Progress) -> Selection:
        """Who is kept of a step.

        Begins with what has a score. A rollout that one selector rejects is not seen by the next, and its
        reason is of the one that rejected it. A group of which nothing is left stays in its place.

        Args:
            groups: the whole step, in data order, of any sizes.
            progress: how far the run is.

        Returns:
            The keep mask `[P, N_max]` with a reason for each rollout.

        Raises:
            ValueError: a user's function fails or answers something else than bools.
        """
        left: Sequence[Places] = [
            [place for place, score in enumerate(group.scores) if isinstance(score, Score)]
            for group in groups
        ]
        reasons = [[NOT_SCORED] * len(group.scores) for group in groups]
        for selector in self.selectors:
            stays = selector.select(groups, left, progress)
            for row, before, after in zip(reasons, left, stays, strict=True):
                rejected = set(before) - set(after)
                assert len(rejected) == len(before) - len(after), "a selector kept what was not left"
                for place in rejected:
                    row[place] = selector.reason
            left = stays
        for number, places in enumerate(left):
            for place in places:
                reasons[number][place] = KEPT
        return selection_of(left, reasons, [NOT_SCORED, *(selector.reason for selector in self.selectors)])

    def remember(self, groups: Sequence[Group], selection: Selection) -> None:
        """Take note of a step that was trained, for those that compare with earlier ones; on every rank."""
        if self.remembers:
            for group, place in selection.kept(groups):
                self._remember(group, place)

    def restore(self, kept: Sequence[Group]) -> None:
        """Take note of all that was kept before, when a run continues; prompts have their row or id."""
        for group in kept:
            for place in range(len(group.rollouts)):
                self._remember(group, place)

    @property
    def remembers(self) -> bool:
        """Whether a selector compares with earlier steps."""
        return any(selector.remembers for selector in self.selectors)

    def _remember(self, group: Group, place: int) -> None:
        for selector in self.selectors:
            selector.remember(group, place)


def chain_of(rs: RSConfig) -> Chain:
    """The chain of a training: what servers sampled with too old weights is rejected first."""
    chain = build_chain(rs.selection, top_n=rs.top_n_rollouts, min_reward=rs.min_reward)
    if not rs.generation.is_served or rs.offline:
        return chain
    most = rs.generation.max_version_lag + rs.pool.max_staleness
    return Chain([filters.VersionLag(most), *chain.selectors])


def build_chain(configs: Sequence[SelectorSection], *, top_n: int, min_reward: float | None = None) -> Chain:
    """The chain that the config names.

    Args:
        configs: `model.rs.selection`; empty for the plain recipe.
        top_n: `model.rs.top_n_rollouts`, also of a `topk` without `k`.
        min_reward: `model.rs.min_reward`, for the plain recipe only.

    Raises:
        ValueError: a user's function cannot be found or called, `top_n` is below 1, or `min_reward` is NaN or
            given along with a chain.
    """
    if top_n < 1:
        raise ValueError(f"top_n must be at least 1, not {top_n}")
    if not configs:
        if min_reward is None:
            return Chain([bars.TopK(top_n)])
        if min_reward != min_reward:
            raise ValueError("min_reward must be a number, not NaN")
        return Chain([bars.Threshold(min_reward, reason="below min_reward"), bars.TopK(top_n)])
    if min_reward is not None:
        raise ValueError("min_reward has no place beside a chain; put a threshold selector into it")
    made: list[Selector] = []
    for number, config in enumerate(configs):
        links = MAKERS[type(config)](config.with_top_n(top_n), f"model.rs.selection.{number}")
        made += [links] if isinstance(links, Selector) else links
    return Chain(made)


Links = Selector | Sequence[Selector]
Maker = Callable[[Any, str], Links]
"""Makes the links of a section that stands at a key: one, several in a row, or none if it keeps all."""


def _row(section: type[AnySection], make: Callable[[AnySection, str], Links]) -> tuple[type, Maker]:
    return section, make


MAKERS: Mapping[type, Maker] = dict(
    (
        _row(conf.TopKConfig, lambda c, _: bars.TopK(c.num)),
        _row(
            conf.PercentileConfig,
            lambda c, _: bars.Percentile(
                c.start, c.end, over_run=c.over == "run", above_lowest=c.above_lowest
            ),
        ),
        _row(conf.ThresholdConfig, lambda c, _: bars.Threshold(c.at_least)),
        _row(conf.PositiveConfig, lambda c, _: bars.Positive(c.above)),
        _row(conf.TopFractionConfig, lambda c, _: bars.TopFraction(c.fraction)),
        _row(conf.MedianConfig, lambda *_: bars.Median()),
        _row(conf.AllConfig, lambda *_: ()),
        _row(conf.TruncatedConfig, lambda *_: filters.Truncated()),
        _row(conf.LengthConfig, lambda c, _: filters.Length(c.min_tokens, c.max_tokens)),
        _row(conf.PassRateConfig, lambda c, _: filters.PassRate(c.min, c.max, c.above)),
        _row(conf.FunctionConfig, lambda c, key: filters.Function(f"{key}.function", c.function, c.kwargs)),
        _row(
            conf.DuplicatesConfig,
            lambda c, _: distinct.Duplicates(normalised=c.normalized, against=c.against),
        ),
        _row(conf.NearDuplicatesConfig, lambda c, _: distinct.NearDuplicates(c.similarity, c.measure, c.n)),
        _row(conf.DistinctAnswersConfig, lambda c, _: distinct.DistinctAnswers(c.k, c.pattern)),
        _row(conf.DiverseConfig, lambda c, _: distinct.Diverse(c.k, c.n)),
        _row(conf.PessimisticConfig, pessimistic.links),
    )
)
"""By the kind of section: what makes its selector."""
