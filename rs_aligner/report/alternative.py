"""Other settings for a run's selection, from its own and what a user changes of them.

Left out on purpose: what they would have kept (`replay`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rs_aligner.config.base import Section
from rs_aligner.config.chain import in_words
from rs_aligner.config.load import load_config
from rs_aligner.config.rs import RSConfig
from rs_aligner.config.tree import tree_of
from rs_aligner.report.run_data import RunData
from rs_aligner.rollout import Group, Score, ScoreFailure

WATCHED = "watched"
"""The name under which a watched judge's score is asked for as a component."""
PREFIX = "model.rs."
"""Of the keys that say what is selected."""
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
        if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in _ELSEWHERE
    }
    return load_config(tree_of(found | {PREFIX + k: v for k, v in changes.items()}), _Root).model.rs


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
