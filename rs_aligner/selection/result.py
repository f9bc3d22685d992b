"""What became of each rollout of a step: the keep mask and the reasons.

Plain: it knows nothing of how the choice was made. Left out on purpose: weights of the kept, which belong to
the objective.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rs_aligner.rollout import Group

KEPT = "kept"
NOT_SCORED = "not scored"

_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True, slots=True)
class Selection:
    """What became of each rollout of a step.

    Groups may differ in size: N_max is the largest, and `keep` is False where a group has no such rollout.

    Attributes:
        keep: bool `[P, N_max]`, True where the rollout is trained on.
        reasons: `[P][N]`, why: `kept`, `not scored` or the reason of the selector that rejected it; as many
            as the group has rollouts.
        possible: every reason for a rejection that there could have been, so that one that did not occur
            counts as 0.
    """

    keep: Tensor
    reasons: tuple[tuple[str, ...], ...]
    possible: tuple[str, ...] = ()

    def rows(self, groups: Sequence[Group]) -> Iterator[tuple[Group, tuple[bool, ...], tuple[str, ...]]]:
        """Each group with what became of its rollouts, a flag and a reason for each.

        Raises:
            ValueError: there are more or fewer groups than were selected from.
        """
        for group, keep_N, reasons_N in zip(groups, self.keep.tolist(), self.reasons, strict=True):
            yield group, tuple(keep_N[: len(reasons_N)]), reasons_N

    def kept(self, groups: Sequence[Group]) -> Iterator[tuple[Group, int]]:
        """The kept rollouts in (prompt, rollout) order, each as its group and its place there.

        Raises:
            ValueError: the groups differ in number or size from those that were selected from.
        """
        for group, keep_N, _ in self.rows(groups):
            for place, (_, keep) in enumerate(zip(group.rollouts, keep_N, strict=True)):
                if keep:
                    yield group, place

    def only(self, places: Sequence[Sequence[int]]) -> Selection:
        """What became of some rollouts: of each group those at these places, in that order."""
        rows = list(zip(self.keep.tolist(), self.reasons, places, strict=True))
        kept = [[new for new, place in enumerate(part) if keep_N[place]] for keep_N, _, part in rows]
        return selection_of(kept, [[why[place] for place in part] for _, why, part in rows], self.possible)

    def reason_counts(self) -> dict[str, int]:
        """How many rollouts were rejected for each reason, as metrics.

        Returns:
            `rejected/<reason>`, the reason's words but for articles joined by `_`: `rejected/not_in_top_n`.
        """
        counts = {_key(reason): 0 for reason in self.possible}
        for row in self.reasons:
            for reason in row:
                if reason != KEPT:
                    counts[_key(reason)] = counts.get(_key(reason), 0) + 1
        return counts


def selection_of(
    kept: Sequence[Sequence[int]], reasons: Sequence[Sequence[str]], possible: Sequence[str] = ()
) -> Selection:
    """A selection from the places that are kept of each group, and a reason for every rollout."""
    keep_PN = torch.zeros(len(reasons), max(map(len, reasons), default=0), dtype=torch.bool)
    for keep_N, places in zip(keep_PN, kept, strict=True):
        keep_N[list(places)] = True
    return Selection(keep_PN, tuple(tuple(row) for row in reasons), tuple(dict.fromkeys(possible)))


def nothing_kept(groups: Sequence[Group], reason: str) -> Selection:
    """The selection of a step of which nothing is trained, all for the same reason."""
    return selection_of([()] * len(groups), [(reason,) * len(group.rollouts) for group in groups])


def _key(reason: str) -> str:
    words = re.findall(r"\w+", reason.lower())
    return "rejected/" + "_".join(word for word in words if word not in _ARTICLES)
