"""trlX's names: they set our keys, on any config, and nothing of them is ignored silently."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rs_aligner.config import ConfigError, TrainRSConfig, load_config
from tests.config.conftest import compose

pytestmark = pytest.mark.timeout(60)
KEY = "model.rs.rft"
GEN_KWARGS = "{max_new_tokens: 40, top_k: 5, top_p: 0.9, temperature: 0.8, do_sample: true}"


def load(tree: dict[str, Any], name: str, *overrides: str) -> TrainRSConfig:
    composed = compose(name, list(overrides))
    composed.merge_with(tree)
    return load_config(composed, TrainRSConfig)


@pytest.mark.parametrize("name", ["train_rs", "recipes/trlx_rft"])
def test_trlx_names_work_as_overrides(name, tree, caplog):
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        config = load(
            tree(),
            name,
            f"{KEY}.start_percentile=0.6",
            f"{KEY}.end_percentile=0.9",
            f"{KEY}.n_improve_steps=3",
            f"{KEY}.n_generations_per_prompt=16",
            f"{KEY}.gen_kwargs={GEN_KWARGS}",
        )
    assert not caplog.records
    rs = config.model.rs
    assert (rs.num_rollouts_per_prompt, rs.pool.improve_steps) == (16, 3)
    assert rs.length_params.max_length == 40
    sampling = rs.sampling_params
    assert (sampling.use_greedy, sampling.top_k, sampling.top_p, sampling.temperature) == (False, 5, 0.9, 0.8)
    percentile, duplicates = rs.selection  # trlX's order: the bar is taken over all samples
    assert duplicates.name == "duplicates"
    assert (percentile.start, percentile.end, percentile.over) == (0.6, 0.9, "improve_steps")
    assert percentile.above_lowest


@pytest.mark.parametrize("name", ["train_rs", "recipes/trlx_rft"])
def test_what_is_left_out_has_trlx_defaults(name, tree):
    rs = load(tree(), name, f"{KEY}.gen_kwargs.do_sample=true").model.rs
    assert (rs.num_rollouts_per_prompt, rs.pool.improve_steps) == (32, 4)
    assert (rs.selection[0].start, rs.selection[0].end) == (0.7, 0.95)


def test_do_sample_false_is_greedy(tree):
    assert load(tree(), "train_rs", f"{KEY}.gen_kwargs.do_sample=false").model.rs.sampling_params.use_greedy


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            f"{KEY}.gen_kwargs={{beams: 3, num_beams: 2}}",
            f'{KEY}.gen_kwargs is {{"beams": 3, "num_beams": 2}}: beams, num_beams is not known here; '
            "known are max_new_tokens, temperature, top_k, top_p, do_sample",
        ),
        (f"{KEY}.gen_kwargs.do_sample=no", "do_sample should be true or false"),
        (f"{KEY}.gen_kwargs.temperature=-1", "model.rs.sampling_params.temperature is -1"),
        (f"{KEY}.start_percentile=70", f"{KEY}.start_percentile is 70: should be less than or equal to 1"),
        (f"{KEY}.n_improve=3", f"{KEY}.n_improve is not a key; the nearest one is {KEY}.n_improve_steps"),
        (f"{KEY}.end_percentile=0.5", f"{KEY}.end_percentile is 0.5: should be at least {KEY}.start_per"),
    ],
)
@pytest.mark.parametrize("name", ["train_rs", "recipes/trlx_rft"])
def test_what_cannot_work_is_named_by_trlx_own_key(name, override, line, tree):
    with pytest.raises(ConfigError) as error:
        load(tree(), name, override)
    (told,) = error.value.problems
    assert line in told


def test_a_selection_beside_it_is_refused(tree):
    with pytest.raises(ConfigError, match=r'selection is \["topk"\]: model.rs.rft brings a selection of its'):
        load(tree(), "recipes/trlx_rft", "model.rs.selection=[{name: topk}]")


def test_a_key_that_it_overrules_is_warned_of(tree, caplog):
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load(
            tree(),
            "train_rs",
            f"{KEY}.gen_kwargs.max_new_tokens=40",
            *("model.rs.num_rollouts_per_prompt=8", "model.rs.length_params.max_length=50"),
            *("model.rs.pool.improve_steps=2", "model.rs.pool.passes=2"),
        )
    assert [record.getMessage() for record in caplog.records] == [
        f"model.rs.{key} has no effect: model.rs.rft makes it {value}"
        for key, value in (
            ("num_rollouts_per_prompt = 8", 32),
            ("pool.improve_steps = 2", 4),
            ("length_params.max_length = 50", 40),
        )
    ]


def test_a_loaded_config_loads_again(tree):
    once = load(tree(), "recipes/trlx_rft")
    assert TrainRSConfig.model_validate(once.model_dump()) == once
