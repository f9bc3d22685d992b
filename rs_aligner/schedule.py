"""The learning rate of each optimizer step, as a plain function of the step.

Nothing here holds state. A run that resumes asks for the rate of the step it is at, so there is nothing
to save and nothing that could drift from the checkpoint's counter.

What is not set follows the length of the run, so that no length switches training off. What is set means
what it means in NeMo-Aligner: where all of it is, `CosineAnnealing` follows NeMo's class of that name (nemo
3.0.0, `nemo.core.optim.lr_scheduler`) to the letter, so that old launch scripts train as they did. That
includes a quirk: its warm-up has two forms, one with and one without `constant_steps`. Left out on purpose:
ratios in place of steps, and restarts. Plain arithmetic: no import of this package, and no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

WARMUP_SHARE = 20  # an unset warm-up is the 20th part of the run
MIN_LR_SHARE = 10  # an unset end is the 10th part of the highest rate
NEAR = 0.9
"""A rate of at least this share of `lr` counts as the asked one; a cosine has it in a fifth of its steps."""


class Schedule(Protocol):
    """The section `model.optim.sched`; None stands for what `learning_rate` says."""

    @property
    def name(self) -> str: ...
    @property
    def warmup_steps(self) -> int | None: ...
    @property
    def constant_steps(self) -> int | None: ...
    @property
    def min_lr(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class RatePath:
    """What the rate does over a run.

    Attributes:
        steps: optimizer steps.
        first, highest, mean, last: rates.
        near_lr: steps whose rate is at least `NEAR` of `model.optim.lr`.
    """

    steps: int
    first: float
    highest: float
    mean: float
    last: float
    near_lr: int


def default_warmup(max_steps: int | None) -> int:
    """Steps of a warm-up that is not set: a twentieth of the run, rounded up; none for a run of one."""
    return 0 if max_steps is None or max_steps <= 1 else -(-max_steps // WARMUP_SHARE)


def learning_rate(step: int, sched: Schedule, lr: float, max_steps: int | None) -> float:
    """The learning rate of one optimizer step.

    With `M = max_steps`, `W = sched.warmup_steps` (None: `default_warmup(M)`), `C = sched.constant_steps`
    (None: 0) and `min_lr = sched.min_lr` (None: `lr / 10`):

    - `constant`: rises to `lr` over the warm-up, `lr * (step + 1) / (W + 1)`, then stays there.
    - `CosineAnnealing`: the same warm-up up to and including step W, then half a cosine over `M - W - C`
      steps from `lr` at step W to `min_lr`, then `min_lr` for the last C.
    - `CosineAnnealing` where W and C are both set and C is not 0: Megatron-LM's warm-up, `lr * step / W`,
      whose first step has a rate of zero; the rest is the same.
    - After step M, `min_lr`.

    With nothing set, the mean rate of a run of any length is at least 0.54 of `lr`, and no rate is zero.

    Where `M` leaves no step between warm-up and constant steps (`M <= W + C`) there is no cosine: the
    rate falls from `lr` to `min_lr` right after the warm-up, as in NeMo. Where `max_steps` is None
    there is no end to fall to, and the rate stays at `lr` after the warm-up of `constant`.

    Args:
        step: optimizer steps made so far in the run, from 0.
        sched: shape of the schedule.
        lr: the highest rate (`model.optim.lr`).
        max_steps: optimizer steps of the whole run, or of a cycle where each restarts; None where the end is
            not known.

    Returns:
        The rate to use for this step.

    Raises:
        ValueError: the step is negative, or `CosineAnnealing` has a `min_lr` above `lr`.
    """
    if step < 0:
        raise ValueError(f"optimizer steps count from 0, not {step}")
    warmup = default_warmup(max_steps) if sched.warmup_steps is None else sched.warmup_steps
    if sched.name == "constant" or max_steps is None:
        return lr * min(1.0, (step + 1) / (warmup + 1))
    min_lr = lr / MIN_LR_SHARE if sched.min_lr is None else sched.min_lr
    if min_lr > lr:
        raise ValueError(
            f"model.optim.sched.min_lr={min_lr} is above model.optim.lr={lr}; lower it to at most that"
        )
    constant = sched.constant_steps or 0
    if warmup > 0 and step <= warmup:
        from_zero = constant > 0 and sched.warmup_steps is not None
        return lr * (step / warmup if from_zero else (step + 1) / (warmup + 1))
    cosine_steps = max_steps - warmup - constant
    if step > warmup + cosine_steps or cosine_steps <= 0:
        return min_lr
    progress = (step - warmup) / cosine_steps
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))


def rate_path(sched: Schedule, lr: float, num_steps: int) -> RatePath:
    """What the rate does over a run of `num_steps` optimizer steps, at least one.

    Raises:
        ValueError: as `learning_rate`.
    """
    rates = [learning_rate(step, sched, lr, num_steps) for step in range(num_steps)]
    return RatePath(
        num_steps,
        first=rates[0],
        highest=max(rates),
        mean=fmean(rates),
        last=rates[-1],
        near_lr=sum(rate >= NEAR * lr for rate in rates),
    )
