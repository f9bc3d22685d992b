"""The learning rate, by hand at its corners and against NeMo's own class over whole runs."""

from __future__ import annotations

import itertools
import warnings

import pytest

from rs_aligner.config import SchedConfig
from rs_aligner.schedule import learning_rate


def rates(num: int, max_steps: int | None, *, lr: float = 1.0, **sched: object) -> list[float]:
    config = SchedConfig(**{"warmup_steps": 0, "constant_steps": 0, "min_lr": 0.0, **sched})
    return [learning_rate(step, config, lr, max_steps) for step in range(num)]


def test_cosine_falls_from_lr_to_min_lr_and_stays():
    assert rates(7, 4, min_lr=0.2) == pytest.approx([1.0, 0.88284271, 0.6, 0.31715729, 0.2, 0.2, 0.2])


def test_warm_up_rises_to_lr():
    assert rates(4, 100, warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(4, None, warmup_steps=3, name="constant") == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_with_constant_steps_the_warm_up_starts_at_zero_and_the_end_is_flat():
    found = rates(9, 8, warmup_steps=2, constant_steps=2, min_lr=0.2)
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.88284271, 0.6, 0.31715729, 0.2, 0.2, 0.2])


def test_constant_stays_at_lr_beyond_the_end():
    assert rates(20, 10, name="constant", min_lr=0.5) == [1.0] * 20


def test_without_an_end_the_rate_stays_at_lr():
    assert rates(50, None, warmup_steps=1, constant_steps=5) == [0.5] + [1.0] * 49


@pytest.mark.parametrize("max_steps", [1, 3, 5])
def test_a_run_too_short_for_a_cosine_falls_to_min_lr_after_the_warm_up(max_steps):
    found = rates(6, max_steps, warmup_steps=2, constant_steps=3, min_lr=0.1)
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.1, 0.1, 0.1])
    assert rates(3, max_steps, constant_steps=5, min_lr=0.1) == [0.1] * 3


def test_min_lr_may_equal_lr_as_in_old_launch_scripts():
    found = rates(313, 313, lr=1e-6, warmup_steps=10, constant_steps=312, min_lr=1e-6)
    assert found[10:] == [1e-6] * 303


def test_refuses_a_min_lr_above_lr_and_a_step_below_zero():
    with pytest.raises(ValueError, match=r"model\.optim\.sched\.min_lr=2\.0 is above model\.optim\.lr=1\.0"):
        rates(1, 10, min_lr=2.0)
    with pytest.raises(ValueError, match="count from 0"):
        learning_rate(-1, SchedConfig(), 1.0, 10)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_step_is_that_of_nemos_own_class():
    import torch
    from nemo.core.optim.lr_scheduler import CosineAnnealing

    for warmup, constant, max_steps in itertools.product([0, 1, 7], [0, 1, 5], [7, 13, 40]):
        if warmup == 0 and constant == max_steps:
            continue  # NeMo divides by zero
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that no optimizer step was made
            scheduler = CosineAnnealing(
                optimizer, max_steps=max_steps, warmup_steps=warmup, constant_steps=constant, min_lr=2e-5
            )
            expected = []
            for _ in range(max_steps + 5):
                expected.append(optimizer.param_groups[0]["lr"])
                scheduler.step()
        found = rates(
            max_steps + 5, max_steps, lr=3e-4, warmup_steps=warmup, constant_steps=constant, min_lr=2e-5
        )
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-18), (warmup, constant, max_steps)
