"""What a judge counts of its own work, for whoever has it: a server shows it, and a run writes it down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

Counters = Mapping[str, float]
"""Numbers by name since the judge's start, which only grow."""


def counters_of(judge: object) -> dict[str, float]:
    """What a judge has counted since its start; empty for one that counts nothing."""
    return dict(getattr(judge, "counters", {}))


def gained(before: Counters, after: Counters) -> dict[str, float]:
    """What was counted in between."""
    return {name: number - before.get(name, 0) for name, number in after.items()}


def added(parts: Iterable[Counters]) -> dict[str, float]:
    """The sums, name by name."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
