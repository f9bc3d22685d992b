"""The learning rate of each optimizer step, as a plain function of the step.

Nothing here holds state. A run that resumes asks for the rate of the step it is at, so there is nothing
to save and nothing that could drift from the checkpoint's counter.

`CosineAnnealing` follows NeMo's class of that name (nemo 3.0.0, `nemo.core.optim.lr_scheduler`) to the
letter, so that old launch scripts train as they did. That includes a quirk: its warm-up has two forms,
one with and one without `constant_steps`. Left out on purpose: ratios in place of steps, and restarts.
"""

from __future__ import annotations

import math

from rs_aligner.config import SchedConfig


def learning_rate(step: int, sched: SchedConfig, lr: float, max_steps: int | None) -> float:
    """The learning rate of one optimizer step.

    With `W = sched.warmup_steps`, `C = sched.constant_steps`, `M = max_steps`:

    - `constant`: rises to `lr` over the warm-up, `lr * (step + 1) / (W + 1)`, then stays there.
    - `CosineAnnealing` without constant steps: the same warm-up up to and including step W, then half a
      cosine from `lr` at step W to `sched.min_lr` at step M.
    - `CosineAnnealing` with constant steps: Megatron-LM's warm-up, `lr * step / W`, whose first step
      has a rate of zero; then half a cosine over `M - W - C` steps, then `sched.min_lr` for the last C.
    - After step M, `sched.min_lr`.

    Where `M` leaves no step between warm-up and constant steps (`M <= W + C`) there is no cosine: the
    rate falls from `lr` to `sched.min_lr` right after the warm-up, as in NeMo. Where `max_steps` is None
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
    warmup = sched.warmup_steps
    if sched.name == "constant" or max_steps is None:
        return lr * min(1.0, (step + 1) / (warmup + 1))
    if sched.min_lr > lr:
        raise ValueError(
            f"model.optim.sched.min_lr={sched.min_lr} is above model.optim.lr={lr}; lower it to at most that"
        )
    if warmup > 0 and step <= warmup:
        return lr * (step / warmup if sched.constant_steps else (step + 1) / (warmup + 1))
    cosine_steps = max_steps - warmup - sched.constant_steps
    if step > warmup + cosine_steps or cosine_steps <= 0:
        return sched.min_lr
    progress = (step - warmup) / cosine_steps
    return sched.min_lr + 0.5 * (lr - sched.min_lr) * (1 + math.cos(math.pi * progress))
