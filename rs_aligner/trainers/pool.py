"""Which rollouts a step chooses from: new ones, those of the cycle once more, or also the best of before.

A `Source` brings scored groups: sampled from the policy, or read from a file. The `Pool` decides when it is
asked, and what of earlier steps stays a candidate:

- `improve_steps` of 1: each step has groups of its own. Above 1 (grow and improve, as trlX's rejection
  fine-tuning): a cycle of so many steps trains on the same groups, and then there are new ones.
- `max_staleness` above 0: what a step kept stays a candidate in as many later steps, beside what is new. The
  rollouts of a prompt that comes again are one group, whichever step sampled them.

A run that continues finds both in the ledger, so the checkpoint holds no rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from rs_aligner.config import PoolConfig, RSConfig
from rs_aligner.data import DataOrder
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import LedgerRow, groups_of
from rs_aligner.reward.counters import Counters
from rs_aligner.rollout import Group, Prompt
from rs_aligner.selection import Selection
from rs_aligner.trainers.collect import Collector, num_tokens
from rs_aligner.trainers.journal import Journal
from rs_aligner.trainers.round import Collected


class Source(Protocol):
    """Where scored groups come from; the same on every rank."""

    def draw(self, step: int) -> Collected:
        """The groups of a step."""


class SampledRollouts:
    """Groups sampled from the policy, for the next prompts of an epoch's order.

    Args:
        rs: how to sample.
        collector: samples and scores.
        prompts: to sample for.
        order: which of them come next; its place is the run's.
        journal: where they are written down; None for nowhere.
    """

    def __init__(
        self,
        rs: RSConfig,
        collector: Collector,
        prompts: Sequence[Prompt],
        order: DataOrder,
        journal: Journal | None = None,
    ) -> None:
        self.rs, self.collector, self.prompts, self.order = rs, collector, prompts, order
        self.journal = journal

    def draw(self, step: int) -> Collected:
        """Sample for the next prompts what earlier starts did not."""
        rs = self.rs
        prompts = [
            replace(self.prompts[draw.index], position=draw.position, row=draw.index)
            for draw in next(self.order)
        ]
        collector = self.collector
        collect = collector.collect if rs.until is None else partial(collector.collect_until, until=rs.until)
        found = collect(
            prompts,
            num_rollouts=rs.num_rollouts_per_prompt,
            sampling=rs.sampling_params,
            step=step,
            what=f"step {step}",
            open_rollouts=None if self.journal is None else self.journal.open_step(step),
        )
        if found.num_sampled and self.journal is not None:
            self.journal.sampled_anew(step)
        return found


class ScoredRollouts:
    """Groups that were sampled and scored before, in an epoch's order.

    Args:
        groups: all of them.
        order: which of them come next; its place is the run's.
    """

    def __init__(self, groups: Sequence[Group], order: DataOrder) -> None:
        self.groups, self.order = groups, order

    def draw(self, step: int) -> Collected:
        """The next groups."""
        return Collected([self.groups[draw.index] for draw in next(self.order)], is_new=False)


@dataclass(slots=True)
class Candidates:
    """What a step chooses from.

    Attributes:
        groups: a prompt's rollouts each, perhaps of several steps.
        improve_step: which step of the cycle it is, counted from 0.
        new_tokens: response tokens that were sampled for this step.
        waited: seconds spent waiting for scores.
        weights_seconds: spent waiting for servers to take the policy's weights.
        failure: why the judge failed too much to go on; None if it did not.
        num_new: of each group, how many of its first rollouts are not of the bank; None for all.
        counted: what judges of this run's processes counted for it, by the figures' names.
    """

    groups: list[Group]
    improve_step: int
    new_tokens: int
    waited: float = 0.0
    weights_seconds: float = 0.0
    failure: str | None = None
    num_new: Sequence[int] | None = None
    counted: Counters = field(default_factory=dict)

    def by_design(self) -> list[list[int]]:
        """Of each group the places of the rollouts that are there whatever was scored before.

        Neither a bank's, which were the best of their step, nor those that `model.rs.until` sampled because
        others were not accepted.
        """
        num_new = self.num_new or [len(group.rollouts) for group in self.groups]
        return [
            [place for place in range(new) if group.rollouts[place].by_design]
            for group, new in zip(self.groups, num_new, strict=True)
        ]


class Pool:
    """Brings each step its candidates.

    Args:
        config: the `model.rs.pool` section.
        source: where new groups come from.
    """

    def __init__(self, config: PoolConfig, source: Source) -> None:
        self.config, self.source = config, source
        self._cycle: list[Group] = []  # what the steps of this cycle train on
        self._bank: list[Group] = []  # what the step before kept

    def improve_step(self, step: int) -> int:
        """Which step of its cycle a step is, counted from 0; at 0 there are new rollouts."""
        return (step - 1) % self.config.improve_steps

    def draw(self, step: int) -> Candidates:
        """The candidates of a step; a collective where the source is."""
        improve_step = self.improve_step(step)
        if improve_step:
            return Candidates(self._cycle, improve_step, new_tokens=0)
        found = self.source.draw(step)
        if self.config.improve_steps > 1:
            self._cycle = found.groups
        new_tokens = sum(num_tokens(group) for group in found.groups) if found.is_new else 0
        groups = _joined(found.groups, self._fresh_enough(step))
        of_other_prompts = len(groups) - len(found.groups)
        num_new = [*(len(group.rollouts) for group in found.groups), *[0] * of_other_prompts]
        return Candidates(
            *(groups, improve_step, new_tokens, found.waited, found.weights_seconds),
            *(found.failure, num_new, found.counted),
        )

    def settle(self, groups: Sequence[Group], selection: Selection) -> None:
        """Note what a step kept."""
        if self.config.max_staleness:
            kept = (_where(group, flags) for group, flags, _ in selection.rows(groups))
            self._bank = [group for group in kept if group.rollouts]

    def remembered(self, ledger: Ledger, done: int) -> list[LedgerRow]:
        """What of the ledger `restore` needs, for a run that continues behind step `done`.

        Raises:
            ValueError: the ledger does not have it.
        """
        inside = done % self.config.improve_steps
        if inside:  # in the middle of a cycle, whose first step sampled
            return ledger.read(done - inside + 1)
        if self.config.max_staleness and done:
            return ledger.read(done, kept_only=True)
        return []

    def restore(self, rows: Sequence[LedgerRow], done: int) -> None:
        """Go on as a pool that has seen `done` steps; `rows` are those of `remembered`."""
        if done % self.config.improve_steps:
            self._cycle = groups_of(rows)
        else:
            self._bank = groups_of(rows)

    def _fresh_enough(self, step: int) -> list[Group]:
        """The banked rollouts that may still be used in a step."""
        oldest = step - 1 - self.config.max_staleness
        kept = (_where(g, [r.policy_version >= oldest for r in g.rollouts]) for g in self._bank)
        return [group for group in kept if group.rollouts]


def _where(group: Group, flags: Sequence[bool]) -> Group:
    """A group of some of its rollouts."""
    return group.only([place for place, flag in enumerate(flags) if flag])


def _joined(new: Sequence[Group], banked: Sequence[Group]) -> list[Group]:
    """New groups, each with what is banked of its prompt behind it, and then the groups of other prompts.

    What is new comes first, so that it is kept where it ties with a stale one.
    """
    if not banked:
        return list(new)
    known = {group.prompt.row: group for group in banked}
    joined = []
    for group in new:
        before = known.pop(group.prompt.row, None)
        joined.append(group if before is None else _merged(group, before))
    return joined + list(known.values())


def _merged(new: Group, before: Group) -> Group:
    is_watched = bool(before.watched) or bool(new.watched)
    return Group(
        new.prompt,
        new.rollouts + before.rollouts,
        new.scores + before.scores,
        new.watched_scores() + before.watched_scores() if is_watched else [],
    )
