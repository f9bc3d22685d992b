"""What other settings would have kept of a run's rollouts: another selector, N, bar, or part of the score.

Nothing is sampled and nothing judged. The selectors are those of a run (`rs_aligner/selection`), shown the
groups of the ledger, step by step. With fewer rollouts a prompt than were recorded there are two ways:

- of a chain that looks at each rollout by itself and then takes the best k, the expectation over all choices
  of N of the n recorded rollouts, in closed form (`proof.estimates.kept_probability`);
- of any other, the n rollouts are cut by index into n / N parts of N, each part is a step that the selectors
  see, and the mean is taken over the parts.

The first part is what the very run would have sampled with N, since a rollout's seed comes from run, step,
prompt and index; the mean over all choices or parts is the better guess at a run with another seed.

Left out on purpose: what other weights would have sampled. A selection that trains on other rollouts makes
another policy, so of a step behind the first this is what would have been kept of what was there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rs_aligner.config.base import Section
from rs_aligner.config.chain import in_words
from rs_aligner.config.load import load_config
from rs_aligner.config.rs import RSConfig
from rs_aligner.config.tree import tree_of
from rs_aligner.record.ledger_row import LedgerRow, groups_of
from rs_aligner.report.run_data import RunData
from rs_aligner.report.tally import Outcome, kept_of
from rs_aligner.rollout import Group, Score, ScoreFailure

WATCHED = "watched"
"""The name under which a watched judge's score is asked for as a component."""
_PREFIX = "model.rs."
_ELSEWHERE = ("offline", "rft")  # files that need not be there any more, and names for other keys


class _Model(Section):
    rs: RSConfig


class _Root(Section):
    """What of a config is needed here, at the keys that users know."""

    model: _Model


@dataclass(frozen=True)
class Alternative:
    """Settings that a selection is made under.

    Attributes:
        rs: `model.rs` of the run, with what is other in it.
        component: of the score, by which is selected; None for the score itself.
        num_rollouts: of a prompt, as asked for; None for all that were recorded.
    """

    rs: RSConfig
    component: str | None = None
    num_rollouts: int | None = None

    @property
    def words(self) -> str:
        """What is kept, in words."""
        chain = in_words(self.rs.selection, self.rs.top_n_rollouts)
        if not self.rs.selection:
            chain = f"the best {self.rs.top_n_rollouts}"
            if self.rs.min_reward is not None:
                chain = f"at least {self.rs.min_reward:g}, then {chain}"
        return chain if self.component is None else f"{chain} by {self.component}"


def settings(run: RunData, **changes: Any) -> RSConfig:
    """`model.rs` of a run's newest start, with some keys changed.

    Args:
        run: of rejection sampling.
        changes: keys of `model.rs`.

    Raises:
        ConfigError: a change is none of what the config may hold; with its key.
        ValueError: the run was made before starts were recorded.
    """
    attempts = run.attempts()
    if not attempts:
        raise ValueError(f"{run.folder} has no config/attempt_01.yaml: nobody knows how it selected")
    found = {
        key: value
        for key, value in attempts[-1].settings.items()
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _ELSEWHERE
    }
    return load_config(tree_of(found | {_PREFIX + k: v for k, v in changes.items()}), _Root).model.rs


def alternative(
    run: RunData,
    *,
    selection: Sequence[Any] | None = None,
    rollouts: int | None = None,
    top_n: int | None = None,
    bar: float | None = None,
    component: str | None = None,
) -> Alternative:
    """Other settings for a run; what is None stays as it was.

    Args:
        run: of rejection sampling.
        selection: `model.rs.selection`, in place of the run's and of its `min_reward`.
        rollouts: `num_rollouts_per_prompt`, at most as many as were recorded.
        top_n: `top_n_rollouts`.
        bar: `min_reward`.
        component: of the score, by which to select, or `watched`.

    Raises:
        ValueError: they do not go together, or with the run.
    """
    own = settings(run)
    changes: dict[str, Any] = {}
    if bar is not None and (selection or (selection is None and own.selection)):
        raise ValueError("--bar is the bar of the plain recipe; in --selection write {name: threshold, ...}")
    if selection is not None:
        changes |= {"selection": list(selection), "min_reward": None}
    if bar is not None:
        changes["min_reward"] = bar
    if top_n is not None:
        changes["top_n_rollouts"] = top_n
    if rollouts is not None:
        changes["num_rollouts_per_prompt"] = rollouts
        if own.until is not None:
            changes["until"] = None
    return Alternative(settings(run, **changes), component, rollouts)


def replay(run: RunData, steps: Sequence[int], alternatives: Sequence[Alternative]) -> list[Outcome]:
    """What each alternative would have kept of some steps.

    Args:
        run: of rejection sampling.
        steps: of its ledger, in order; the steps before the first are read, too, where a selector remembers.
        alternatives: what to try.

    Raises:
        ValueError: a step is not there, the ledger has fewer rollouts of a prompt than are asked for, or
            scores have no such component.
    """
    from rs_aligner.report.replayer import Replayer  # brings torch, by the selectors

    attempts = run.attempts()
    num_steps = max(attempts[-1].planned.get("steps", 1) if attempts else 1, *run.steps(), *steps)
    replayers = [Replayer(one, num_steps) for one in alternatives]
    before = [step for step in run.steps() if step < steps[0]]
    for step in before if any(one.remembers for one in replayers) else ():
        groups = groups_of(list(_sampled(run, step)))
        for replayer in replayers:
            replayer.see(groups, step, counts=False)
    for step in steps:
        groups = groups_of(list(_sampled(run, step)))
        for replayer in replayers:
            replayer.see(groups, step)
    return [replayer.outcome for replayer in replayers]


def recorded(run: RunData, steps: Sequence[int]) -> Outcome:
    """What the run itself kept of the same rollouts, from the ledger."""
    outcome = Outcome("as it was", how="the ledger")
    for step in steps:
        for _, found in groupby(_sampled(run, step), key=lambda row: row.group):
            rows = list(found)
            (group,) = groups_of(rows)
            outcome.num_rollouts = max(outcome.num_rollouts, len(rows))
            outcome.count(kept_of(group, group, [place for place, row in enumerate(rows) if row.kept]))
            outcome.explain(Counter(row.reason for row in rows if not row.kept))
    return outcome


def _sampled(run: RunData, step: int) -> Iterator[LedgerRow]:
    """What a step sampled, or read; rollouts of earlier steps that it trained on again are left out."""
    attempts = run.attempts()
    is_offline = bool(attempts and attempts[-1].settings.get(f"{_PREFIX}offline"))
    return (row for row in run.rows(step) if is_offline or row.policy_version == step - 1)


def judged_by(group: Group, component: str | None) -> Group:
    """The group with a component in place of its scores.

    Raises:
        ValueError: a scored rollout has none of that name.
    """
    if component is None:
        return group
    if component == WATCHED:
        return replace(group, scores=group.watched_scores())
    scores: list[Score | ScoreFailure] = []
    for score in group.scores:
        if isinstance(score, ScoreFailure):
            scores.append(score)
        elif component in score.components:
            scores.append(replace(score, reward=score.components[component]))
        else:
            known = ", ".join([*score.components, WATCHED])
            raise ValueError(f"--component {component}: a score has no such part, but {known}")
    return replace(group, scores=scores)
