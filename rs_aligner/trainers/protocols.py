"""What the loops know of a model and of their ranks, so that tests can hand them plain fakes.

Judges are known by `reward.protocol.Judge`. Left out on purpose: anything that runs; nothing here does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rs_aligner.rollout import Rollout, TrainingRow
from rs_aligner.sample_request import SampleRequest

Row_contra = TypeVar("Row_contra", contravariant=True)


class Stats(Protocol):
    """What an optimizer step reports."""

    @property
    def loss(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def figures(self) -> Mapping[str, float]:
        """What else there is to report, by the name it has among the metrics; may be empty."""

    @property
    def skipped(self) -> Sequence[Any]:
        """The rows of a step that was not applied, since loss or gradient is not finite; of others none."""


class Collective(Protocol):
    """What can compare its ranks."""

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        """Per key the largest value over all ranks."""

    def gather(self, item: Any) -> list[Any]:
        """The items of all replicas, on every rank; the first rank's comes first."""


class Samples(Protocol):
    """What answers prompts. Its methods are collective: every rank calls them in the same order.

    Attributes:
        weights_seconds: that the last `generate` waited for servers to take the weights; 0 without servers.
    """

    @property
    def weights_seconds(self) -> float: ...

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        """This replica's share of the rollouts, each as soon as it ends."""

    def gather(self, item: Any) -> list[Any]:
        """The items of all replicas, on every rank."""


class Trainee(Collective, Protocol[Row_contra]):
    """What is trained. All methods are collective: every rank calls them in the same order."""

    version: int

    def train(self, rows: Sequence[Row_contra]) -> Sequence[Stats]:
        """One pass over the rows."""

    def checkpoint_bytes(self) -> int:
        """About as many bytes as a checkpoint has."""

    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        """Write a whole checkpoint, or none and raise `CannotSave`."""

    def load(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint, or change nothing and raise `BrokenCheckpoint`."""

    def export(self, folder: Path) -> None: ...


class Policy(Samples, Trainee[TrainingRow], Protocol):
    """What samples and is trained."""

    def reference_log_probs(self, rows: Sequence[TrainingRow]) -> list[tuple[float, ...]]:
        """The log-probability of each response token under the starting policy, by row."""

    def restart(self) -> None:
        """Go back to the starting weights, with an optimizer as new."""
