"""TensorBoard as a sink of a run's figures, by torch's writer.

Its files lie in the run's folder, beside the ledger that has all rollouts, so it gets texts, too. Left out on
purpose: anything but the first prompts' answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rs_aligner.harmless import markdown_cell
from rs_aligner.record.sinks import Example, Sampled

SHOWN = ("validation/reward", "validation/accuracy", "reward/kept_mean", "reward/mean", "loss")
"""Figures beside the settings in the tab HPARAMS."""


class TensorBoard:
    """Writes event files into a folder; the first is opened with the first figures.

    Args:
        folder: of the files; a start adds one of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None
        self._settings: Mapping[str, Any] = {}

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Note the settings, which are written with the first figures."""
        self._settings = params

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a step's figures, so that they can be seen at once."""
        writer = self._opened()
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    def log_rollouts(self, sampled: Sampled, step: int) -> None:
        """Write how scores and lengths are distributed, and a few answers."""
        writer = self._opened()
        for key, numbers in sampled.distributions().items():
            writer.add_histogram(key, _array(numbers), step)
        if table := _table(sampled.examples()):
            writer.add_text(f"samples/{sampled.name}", table, step)

    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # not before the first tokens are sampled

            self._writer = SummaryWriter(log_dir=str(self.folder))
            if self._settings:
                self._write_settings()
        return self._writer

    def _write_settings(self) -> None:
        """As `add_hparams` does, which would put them into a folder, a run, of their own."""
        from torch.utils.tensorboard.summary import hparams

        plain = {key: _plain(value) for key, value in self._settings.items()}
        for summary in hparams(plain, dict.fromkeys(SHOWN, 0.0)):
            self._writer.file_writer.add_summary(summary)


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)


def _array(numbers: list[float]) -> Any:
    import numpy as np

    return np.asarray(numbers, dtype=np.float64)


def _table(examples: list[Example]) -> str:
    """As Markdown, in which nothing that a model wrote is markup."""
    if not examples:
        return ""
    rows = [[_cell(value) for value in one.cells().values()] for one in examples]
    head = list(examples[0].cells())
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return markdown_cell(value) if isinstance(value, str) else f"{value:.6g}"
