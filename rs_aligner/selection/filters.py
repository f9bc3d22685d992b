"""Selectors that look at what a rollout is, or a group: how it ended, how long it is, what its user thinks.

Left out on purpose: a filter on a prompt's text or metadata alone. Prompts that are not wanted are best left
out of the data file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rs_aligner.rollout import Group, Score
from rs_aligner.selection.base import GroupSelector, Places, Progress, reward
from rs_aligner.users_code import describe, find


class Truncated(GroupSelector):
    """Rejects what reached the length limit instead of coming to an end."""

    reason = "truncated"

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What ended by itself."""
        return [place for place in left if group.rollouts[place].finish_reason != "length"]


class VersionLag(GroupSelector):
    """Rejects what an older policy sampled than may be trained on.

    Args:
        most: versions that the policy of a rollout may be behind the one that its step begins with, beside
            the steps of a cycle that sample nothing.
    """

    reason = "of too old a version"

    def __init__(self, most: int) -> None:
        self.most = most

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What is new enough."""
        oldest = progress.step - 1 - progress.improve_step - self.most
        return [place for place in left if group.rollouts[place].policy_version >= oldest]


class Length(GroupSelector):
    """Rejects what is shorter or longer than the bounds, in tokens, the ending token included."""

    reason = "too short or too long"

    def __init__(self, min_tokens: int | None, max_tokens: int | None) -> None:
        self.min_tokens, self.max_tokens = min_tokens, max_tokens

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What is neither too short nor too long."""
        return [place for place in left if self._fits(len(group.rollouts[place].token_ids))]

    def _fits(self, tokens: int) -> bool:
        return (self.min_tokens is None or tokens >= self.min_tokens) and (
            self.max_tokens is None or tokens <= self.max_tokens
        )


class PassRate(GroupSelector):
    """Rejects groups that are solved too seldom or too often.

    The pass rate is the share of the group's scored rollouts with a reward above `above`, whatever earlier
    selectors rejected: it says how hard the prompt is for the policy. The bounds themselves are outside, so
    0 and 1 reject what is never and what is always solved, for groups of any size.

    Args:
        least: the rate is above it; None for no bound.
        most: the rate is below it; None for no bound.
        above: what a solution's reward is above.
    """

    reason = "pass rate of the group out of bounds"

    def __init__(self, least: float | None, most: float | None, above: float) -> None:
        self.least, self.most, self.above = least, most, above

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """All that is left of the group, or nothing."""
        passed = [score.exceeds(self.above) for score in group.scores if isinstance(score, Score)]
        rate = sum(passed) / len(passed)
        fits = (self.least is None or rate > self.least) and (self.most is None or rate < self.most)
        return left if fits else ()


class Function(GroupSelector):
    """A user's function, asked once for each group.

    It is called as `f(prompt, responses, rewards, metadata, **kwargs)`: the prompt's text, the texts and
    rewards of the rollouts that are left of the group, and the prompt's data row. It returns a bool for each
    rollout, True to keep it. Each rank asks its own copy, so it must always say the same of the same.

    Args:
        key: the config key that names it, for errors.
        spec: `path/to/file.py:name` or `package.module:name`.
        kwargs: its further keyword arguments.

    Raises:
        ValueError: it cannot be found, or cannot be called like this.
    """

    def __init__(self, key: str, spec: str, kwargs: Mapping[str, Any]) -> None:
        self._label, self._kwargs = f"{key}: {spec}", dict(kwargs)
        self._function: Callable[..., Any] = find(key, spec)
        self.reason = f"rejected by {spec.rpartition(':')[2]}"
        try:
            inspect.signature(self._function).bind("", [], [], {}, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"{self._label} cannot be called as f(prompt, responses, rewards, metadata"
                f"{''.join(f', {name}=...' for name in kwargs)}): {error}"
            ) from None
        except ValueError:
            pass  # some callables in C have no signature to check; their first call will tell

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What the function keeps.

        Raises:
            ValueError: it raises, or returns something else than one bool for each rollout.
        """
        texts = [group.rollouts[place].text for place in left]
        rewards = [reward(group, place) for place in left]
        prompt = group.prompt
        try:
            # A copy of the row: it goes into the ledger as it is.
            answer = self._function(prompt.text, texts, rewards, dict(prompt.metadata), **self._kwargs)
        except Exception as error:
            raise ValueError(f"{self._label} failed for prompt {prompt.id}: {describe(error)}") from error
        flags = _flags(answer)
        if flags is None or len(flags) != len(left):
            shown = repr(answer) if len(repr(answer)) <= 100 else repr(answer)[:100] + "..."
            raise ValueError(
                f"{self._label} returned {shown} for prompt {prompt.id}: "
                f"should be a list of {len(left)} bools, one for each response"
            )
        return [place for place, keep in zip(left, flags, strict=True) if keep]


def _flags(answer: Any) -> Sequence[bool] | None:
    """Python's bools, also from arrays; None for anything else."""
    values = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(values, list | tuple):
        return None
    flags = [value.item() if hasattr(value, "item") else value for value in values]
    return flags if all(isinstance(flag, bool) for flag in flags) else None
