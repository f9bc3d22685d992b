"""A run's folder as data frames: `rs_aligner.Run("runs/mine").metrics`.

Left out on purpose: starting runs, which is `train` and its kin, and tokens, which the ledger's files have.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.report.run_data import open_run

if TYPE_CHECKING:
    import pandas

    from rs_aligner.record.ledger_row import LedgerRow

_COLUMNS = (
    *("step", "group", "index", "prompt_id", "prompt", "response", "reward", "kept", "reason", "failure"),
    *("components", "watched", "finish_reason", "policy_version", "by_design", "seed", "metadata"),
)


class Run:
    """A run, to be looked at; it may still be going on, and each property reads what is there then.

    Args:
        folder: of the run.

    Raises:
        ValueError: there is no run in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self._data = open_run(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._data.folder

    @property
    def kind(self) -> str:
        """The command that made it: `train_rs`, `train_sft` or `train_reward_model`."""
        return self._data.kind

    @property
    def metrics(self) -> pandas.DataFrame:
        """A row for each of `metrics.jsonl`, with the step as index; docs/metrics.md has the columns.

        What a step has no figure of is NaN here.
        """
        import pandas

        rows = self._data.metrics()
        return pandas.DataFrame(rows, columns=None if rows else ["step"]).set_index("step", drop=False)

    @property
    def rollouts(self) -> pandas.DataFrame:
        """A row for each rollout of the ledger, in order.

        Columns are `step`, `group` (which prompt of the step), `index` (which of its rollouts), `prompt_id`,
        `prompt`, `response`, `reward` (NaN where the judge failed), `kept`, `reason`, `failure` (None where
        there is a score), `components` (a dict), `watched` (NaN without a second judge's score),
        `finish_reason`, `policy_version`, `by_design`, `seed`, `metadata` (the data row, a dict) and
        `num_tokens`. A rollout that a later step trains on again is there again. All of it is in memory.

        Raises:
            ValueError: a file of the ledger is not as it was written.
        """
        return _frame(row for step in self._data.steps() for row in self._data.rows(step))

    @property
    def held_out(self) -> pandas.DataFrame:
        """The same of answers to held-out prompts; `step` is the one behind which they were sampled."""
        looks = self._data.held_out_steps()
        return _frame(row for step in looks for row in self._data.held_out_rows(step))

    @property
    def config(self) -> dict[str, Any]:
        """The config of the newest start, as it was given."""
        return self._data.config

    @property
    def status(self) -> dict[str, Any]:
        """What it is doing, as `status.json` says."""
        return self._data.status()

    def report(self) -> Path:
        """Write `report.html` into the folder; returns where it is."""
        from rs_aligner.report.page import write_report

        return write_report(self.folder)


def _frame(rows: Any) -> pandas.DataFrame:
    import pandas

    columns: dict[str, list[Any]] = {name: [] for name in (*_COLUMNS, "num_tokens")}
    row: LedgerRow
    for row in rows:
        for name in _COLUMNS:
            columns[name].append(getattr(row, name))
        columns["num_tokens"].append(len(row.token_ids))
    frame = pandas.DataFrame(columns)
    return frame.astype({"reward": "float64", "watched": "float64"})
