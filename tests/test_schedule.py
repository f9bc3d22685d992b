"""The learning rate: what is not set suits a run of any length, what is set is NeMo's.

By hand at its corners, against a closed form over all lengths, and against NeMo's own class over whole runs.
"""

from __future__ import annotations

import itertools
import warnings

import pytest

from rs_aligner.config import SchedConfig
from rs_aligner.schedule import default_warmup, learning_rate, rate_path

DEFAULT = SchedConfig()
NOTHING = {"warmup_steps": None, "constant_steps": None, "min_lr": None}


def rates(num: int, max_steps: int | None, *, lr: float = 1.0, **sched: object) -> list[float]:
    config = SchedConfig(**{"warmup_steps": 0, "constant_steps": 0, "min_lr": 0.0, **sched})
    return [learning_rate(step, config, lr, max_steps) for step in range(num)]


# What is not set


def mean_of_default(num_steps: int) -> float:
    """The mean rate over lr of a whole run, in closed form: the cosines of half a circle cancel out."""
    warmup = default_warmup(num_steps)
    rise = (warmup + 2) / 2 if warmup else 1.0  # 1/(W+1) + 2/(W+1) + ... + 1
    return (rise + (num_steps - warmup - 1) * 0.55) / num_steps


def test_a_run_of_any_length_trains_at_about_half_of_the_rate_in_the_mean():
    assert min(map(mean_of_default, range(1, 100_001))) >= 0.45
    for length in [*range(1, 400), 999, 1000, 1010, 1011, 10_000, 100_000]:
        found = [learning_rate(step, DEFAULT, 2e-5, length) for step in range(length)]
        assert sum(found) / length / 2e-5 == pytest.approx(mean_of_default(length), rel=1e-9), length
        assert min(found) > 0
        assert max(found) == 2e-5


def test_the_first_and_the_last_lengths_by_hand():
    assert rates(1, 1, **NOTHING) == [1.0]
    assert rates(2, 2, **NOTHING) == [0.5, 1.0]
    assert rates(4, 4, **NOTHING) == pytest.approx([0.5, 1.0, 0.1 + 0.45 * 1.5, 0.1 + 0.45 * 0.5])
    assert [default_warmup(length) for length in (1, 2, 20, 21, 100, 1000)] == [0, 1, 1, 2, 5, 50]
    assert rates(50, 40, **NOTHING)[40:] == pytest.approx([0.1] * 10)


@pytest.mark.parametrize("planned", [2, 10, 21, 100, 10_000])
def test_a_run_that_makes_a_tenth_of_the_planned_steps_trains_at_half_of_the_rate_and_more(planned):
    made = rates(max(1, planned // 10), planned, **NOTHING)
    assert min(made) > 0
    assert sum(made) / len(made) >= 0.5


def test_each_key_that_is_set_means_what_it_says_and_leaves_the_others_at_their_defaults():
    assert rates(3, 40, **{**NOTHING, "warmup_steps": 1}) == pytest.approx([0.5, 1.0, 1.0], abs=2e-3)
    assert rates(40, 40, **{**NOTHING, "warmup_steps": 0})[0] == 1.0
    flat = rates(40, 40, **{**NOTHING, "constant_steps": 10})
    assert flat[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])  # no step of rate zero: warmup_steps is not set
    assert flat[29] > 0.1
    assert flat[30:] == pytest.approx([0.1] * 10)
    low = rates(41, 40, **{**NOTHING, "min_lr": 0.0})
    assert low[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert low[40] == pytest.approx(0.0)
    assert rates(40, 40, **{**NOTHING, "name": "constant"}) == pytest.approx([1 / 3, 2 / 3] + [1.0] * 38)


def test_both_steps_set_bring_nemos_first_step_of_rate_zero_back():
    assert rates(2, 40, warmup_steps=10, constant_steps=1000, min_lr=None) == pytest.approx([0.0, 0.1])
    assert rates(1, 40, warmup_steps=10, constant_steps=0, min_lr=None) == pytest.approx([1 / 11])


def test_the_path_of_the_rate_is_that_of_its_steps():
    nemo = SchedConfig(warmup_steps=10, constant_steps=1000, min_lr=9e-8)
    path = rate_path(nemo, 9e-7, 100)
    assert (path.steps, path.first, path.highest, path.last) == (100, 0.0, 9e-7, 9e-8)
    assert path.mean == pytest.approx((5.5 * 9e-7 + 89 * 9e-8) / 100)
    assert path.near_lr == 2  # 0.9 of it in step 10, all of it in step 11
    assert rate_path(DEFAULT, 1.0, 1).mean == 1.0


# What is set


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
