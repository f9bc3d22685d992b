"""The figures of a run that its page and its model's card speak of.

Left out on purpose: what is said of them (`story`, `worth`, `checks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rs_aligner.report.about import About
from rs_aligner.report.run_data import RunData
from rs_aligner.report.sums import Sums, summed

Rows = Sequence[Mapping[str, float]]
LAST = 3
"""Steps that "now" is the mean of, and "at the start"; fewer where there are fewer than twice as many."""


@dataclass(frozen=True)
class Facts:
    """What checks look at.

    Attributes:
        rows: of `metrics.jsonl`.
        sums: over the ledger; None where there is none.
        is_offline: whether steps train on scored answers of a file or of another run.
    """

    rows: Rows
    sums: Sums | None = None
    is_offline: bool = False

    @property
    def steps(self) -> Rows:
        """The rows of steps, without the look before the first."""
        return [row for row in self.rows if row["step"] > 0]

    def now(self, key: str) -> float | None:
        """The mean of the last steps that have the figure; None where none has."""
        found = self._of_steps(key)
        return fmean(found[-_some(found) :]) if found else None

    def then(self, key: str) -> float | None:
        """The same of the first ones."""
        found = self._of_steps(key)
        return fmean(found[: _some(found)]) if found else None

    def number(self, key: str) -> int:
        """How many steps have the figure."""
        return len(self._of_steps(key))

    def total(self, key: str) -> float:
        """The sum over all steps."""
        return sum(row.get(key, 0) for row in self.steps)

    def _of_steps(self, key: str) -> list[float]:
        return [row[key] for row in self.steps if key in row]


def _some(found: Sequence[float]) -> int:
    """How many of these are "now", and "at the start", so that the two have none in common."""
    return max(1, min(LAST, len(found) // 2))


def facts_of(data: RunData, found: About) -> Facts:
    """The facts of a run; `found` is what it was made with."""
    is_offline, sums = bool(found.setting("model.rs.offline")), None
    if data.kind == "train_rs":
        # Servers that get the weights less often sample all of a step, whichever version they have.
        lags = int(found.setting("model.rs.generation.sync_interval") or 1) > 1
        sums = summed(
            data,
            passed_above=float(found.setting("model.rs.passed_above") or 0.0),
            offline_steps=int(found.setting("model.rs.pool.improve_steps") or 1) if is_offline else int(lags),
        )
    return Facts(data.metrics(), sums, is_offline)
