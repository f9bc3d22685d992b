"""TensorBoard as a sink of a run's figures, by torch's writer.

Left out on purpose: texts of rollouts, which stay in the run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes event files into a folder; the first is opened with the first figures.

    Args:
        folder: of the files; a start adds one of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a step's figures, so that they can be seen at once."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # not before the first tokens are sampled

            self._writer = SummaryWriter(log_dir=str(self.folder))
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
