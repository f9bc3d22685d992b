"""What a step's optimizer steps are summed up to."""

from __future__ import annotations

from rs_aligner.trainers.measure import training_metrics
from tests.fake_run import FakeStats


def test_a_figure_is_the_mean_over_the_optimizer_steps_that_have_it():
    stats = [
        FakeStats(1.0, 2.0, 0.1, {"kl": 0.5, "clip_fraction": 0.25}),
        FakeStats(3.0, 4.0, 0.2, {"kl": 0.25}),
        FakeStats(2.0, 3.0, 0.3),
    ]
    assert training_metrics(stats) == {
        "loss": 2.0,
        "grad_norm": 3.0,
        "lr": 0.3,
        "kl": 0.375,
        "clip_fraction": 0.25,
    }


def test_the_plain_recipe_has_no_further_figures():
    assert set(training_metrics([FakeStats(1.0, 2.0, 0.1)])) == {"loss", "grad_norm", "lr"}
    assert training_metrics([]) == {}
