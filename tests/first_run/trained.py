"""Whether a run has trained: its rates, its weights, its held-out score; and what it was told to do.

Rates are what the optimizer was given, step by step, and not what the schedule says; weights are compared
tensor by tensor, between the model that a user brought and the one that the run leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import safetensors.torch
import torch

from rs_aligner.policy.training import BaseTrainer
from tests.e2e.launch import read_metrics

LEAST_MEAN = 0.45  # of the highest rate
SMALL_MODELS_RATE = 3e-4  # what a quarter of a million parameters need; the README's is for billions


@contextmanager
def rates_of() -> Iterator[list[float]]:
    """The rate of every optimizer step of this process, in order."""
    rates: list[float] = []
    update = BaseTrainer.update

    def watched(trainer: BaseTrainer, learning_rate: float) -> float:
        rates.append(learning_rate)
        return update(trainer, learning_rate)

    BaseTrainer.update = watched  # type: ignore[method-assign]  # looked at, and put back
    try:
        yield rates
    finally:
        BaseTrainer.update = update  # type: ignore[method-assign]  # put back


def unmoved(before: Path, after: Path) -> list[str]:
    """Tensors that are the same in both folders."""
    old, new = (_tensors(folder) for folder in (before, after))
    assert old.keys() == new.keys()
    return [name for name, tensor in old.items() if torch.equal(tensor, new[name])]


def check_rates(rates: Sequence[float], lr: float, *, least_mean: float = LEAST_MEAN) -> None:
    """No step was made at a rate of zero, and the mean is not far below what was asked for."""
    assert rates
    assert min(rates) > 0, f"{rates.count(0.0)} of {len(rates)} steps have a rate of zero"
    assert max(rates) <= lr * (1 + 1e-9)
    assert fmean(rates) >= least_mean * lr, f"the mean rate is {fmean(rates) / lr:.0%} of lr"


def held_out(run: Path) -> list[float]:
    """The held-out rewards, in the order of the steps."""
    return [row["validation/reward"] for row in read_metrics(run) if "validation/reward" in row]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("*.safetensors")
    return safetensors.torch.load_file(path)
