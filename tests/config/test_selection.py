"""A chain of selectors in the config: what is told of a wrong one, and what the plan says of a right one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import pytest

from rs_aligner.config import ConfigError, TrainRSConfig, load_config, num_optimizer_steps, plan
from rs_aligner.config.chain import most_kept
from rs_aligner.config.keys import meaning
from rs_aligner.config.selection import SelectorConfig
from tests.config.conftest import compose

pytestmark = pytest.mark.timeout(60)

SECTIONS = {
    get_args(section.model_fields["name"].annotation)[0]: section
    for section in get_args(get_args(SelectorConfig)[0])
}
KEY = "model.rs.selection"


@pytest.fixture
def problems(tree):
    def of(*selectors: Any, **rs: Any) -> list[str]:
        with pytest.raises(ConfigError) as error:
            load_config(
                tree(**{KEY: list(selectors)}, **{f"model.rs.{k}": v for k, v in rs.items()}), TrainRSConfig
            )
        return list(error.value.problems)

    return of


def test_every_key_of_every_selector_is_described_here_and_on_its_page():
    page = (Path(__file__).parents[2] / "docs" / "selection.md").read_text()
    assert len(SECTIONS) >= 16
    for name, section in SECTIONS.items():
        assert f"`{name}`" in page
        for key in section.model_fields:
            assert key == "name" or meaning(section, key), (name, key)
            assert f"`{key}" in page or key == "name", (name, key)


def test_a_chain_can_be_written_on_the_command_line(tree):
    composed = compose("train_rs", ["model.rs.selection=[{name: positive}, {name: topk, k: 2}]"])
    composed.merge_with(tree())
    first, second = load_config(composed, TrainRSConfig).model.rs.selection
    assert (first.name, second.name, second.k) == ("positive", "topk", 2)


@pytest.mark.parametrize(
    ("selector", "line"),
    [
        ({"name": "topp"}, f'{KEY}.0.name is "topp": should be one of topk, percentile, threshold, '),
        ({"k": 1}, f"{KEY}.0.name must be set: topk, percentile, threshold, "),
        ("topk", f'{KEY}.0 is "topk": this is a section, it holds keys of its own'),
        ({"name": "topk", "n": 3}, f"{KEY}.0.n is not a key; the nearest one is {KEY}.0."),
        ({"name": "near_duplicates", "similar": 1}, f"the nearest one is {KEY}.0.similarity"),
        ({"name": "topk", "k": 0}, f"{KEY}.0.k is 0: should be greater than or equal to 1"),
        ({"name": "topk", "k": 5}, "should be at most model.rs.num_rollouts_per_prompt = 4"),
        ({"name": "diverse", "k": 5}, "should be at most model.rs.num_rollouts_per_prompt = 4"),
        ({"name": "diverse"}, f"{KEY}.0.k must be set: How many of a prompt."),
        ({"name": "threshold"}, f"{KEY}.0.at_least must be set: The least reward that passes."),
        ({"name": "percentile", "start": 70}, f"{KEY}.0.start is 70: should be less than or equal to 1"),
        (
            {"name": "percentile", "start": 0.9, "end": 0.8},
            f"{KEY}.0.start is 0.9: should be at most {KEY}.0.end = 0.8",
        ),
        ({"name": "percentile", "over": "steps"}, "should be 'improve_steps' or 'run'"),
        ({"name": "top_fraction", "fraction": 0}, f"{KEY}.0.fraction is 0: should be greater than 0"),
        ({"name": "length"}, f"{KEY}.0: nothing is set; set {KEY}.0.min_tokens"),
        (
            {"name": "length", "min_tokens": 3, "max_tokens": 2},
            f"{KEY}.0.min_tokens is 3: should be at most {KEY}.0.max_tokens = 2",
        ),
        ({"name": "pass_rate", "min": None, "max": None}, f"{KEY}.0: nothing is set; set {KEY}.0.min"),
        (
            {"name": "pass_rate", "min": 0.5, "max": 0.5},
            f"{KEY}.0.min is 0.5: should be below {KEY}.0.max = 0.5",
        ),
        (
            {"name": "distinct_answers", "pattern": "("},
            f'{KEY}.0.pattern is "(": is not a regular expression',
        ),
        ({"name": "distinct_answers", "pattern": "a"}, "should have one group, not 0"),
        ({"name": "function", "function": "f"}, "should be path/to/file.py:name or package.module:name"),
        (
            {"name": "function", "function": "no.py:f"},
            f'{KEY}.0.function is "no.py:f": there is no such file',
        ),
        ({"name": "pessimistic"}, f"{KEY}.0: nothing says where judges disagree; set {KEY}.0.components"),
        (
            {"name": "pessimistic", "components": "first"},
            f'{KEY}.0.components is ["first"]: should be two names or more, each once',
        ),
        (
            {"name": "pessimistic", "components": ["first", "first"]},
            f'{KEY}.0.components is ["first", "first"]: should be two names or more, each once',
        ),
        (
            {"name": "pessimistic", "components": ["first", "second"], "disagreement": "std"},
            f'{KEY}.0.disagreement is "std": has no place beside {KEY}.0.components',
        ),
        (
            {"name": "pessimistic", "disagreement": "std", "scale": "zscore"},
            f'{KEY}.0.scale is "zscore": is of {KEY}.0.components; leave it out',
        ),
        (
            {"name": "pessimistic", "disagreement": "std", "coefficient": -1},
            f"{KEY}.0.coefficient is -1: should be greater than or equal to 0",
        ),
        (
            {"name": "pessimistic", "disagreement": "std", "k": 5},
            "should be at most model.rs.num_rollouts_per_prompt = 4",
        ),
    ],
)
def test_a_selector_that_cannot_work_says_what_would(problems, selector, line):
    (told,) = problems(selector)
    assert line in told


PARTS = {
    "remote_rm.in_process": True,
    "remote_rm.judge.parts": {"first": {"name": "length"}, "second": {"name": "length"}},
}


def test_a_component_that_the_judge_in_this_process_cannot_have_is_told_ahead(tree):
    def told(*names: str) -> list[str]:
        chain = [{"name": "pessimistic", "components": list(names)}]
        try:
            load_config(tree(**{KEY: chain}, **PARTS), TrainRSConfig)
        except ConfigError as error:
            return list(error.problems)
        return []

    assert told("first", "second/disagreement") == told("reward", "second") == []
    known = "should be one of remote_rm.judge.parts: first, second; or reward, their weighted sum"
    assert told("first", "secnd") == [f'{KEY}.0.components is "secnd": {known}']
    with pytest.raises(ConfigError, match=f'{KEY}.0.disagreement is "std": should be one of remote_rm'):
        load_config(tree(**{KEY: [{"name": "pessimistic", "disagreement": "std"}]}, **PARTS), TrainRSConfig)


def test_the_place_in_the_list_is_named(problems):
    assert problems({"name": "truncated"}, {"name": "topk", "k": 0})[0].startswith(f"{KEY}.1.k is 0")
    assert problems({"name": "all"}, {"name": "all"}, {"name": "x"})[0].startswith(f"{KEY}.2.name is ")


def test_a_bar_beside_a_chain_is_told_its_place_in_it(problems):
    (line,) = problems({"name": "topk"}, min_reward=0.5)
    assert line.startswith("model.rs.min_reward is 0.5: has no place beside a chain")
    assert "{name: threshold, at_least: 0.5}" in line


def test_what_is_no_list_is_told_to_be_one(tree):
    with pytest.raises(ConfigError, match='selection is "topk": should be a list'):
        load_config(tree(**{KEY: "topk"}), TrainRSConfig)


def test_top_n_rollouts_that_a_chain_does_not_read_is_warned_of(tree, caplog):
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(**{KEY: [{"name": "topk"}], "model.rs.top_n_rollouts": 2}), TrainRSConfig)
        assert not caplog.records
        load_config(tree(**{KEY: [{"name": "all"}], "model.rs.top_n_rollouts": 2}), TrainRSConfig)
    assert ["top_n_rollouts has no effect" in record.getMessage() for record in caplog.records] == [True]


def test_the_plan_tells_the_chain_in_words_and_what_it_keeps_at_most(tree):
    chain = [
        {"name": "truncated"},
        {"name": "length", "max_tokens": 1000},
        {"name": "pass_rate", "max": None},
        {"name": "positive"},
        {"name": "distinct_answers"},
        {"name": "diverse", "k": 2},
    ]
    config = load_config(tree(**{KEY: chain, "model.rs.num_rollout_samples": 100}), TrainRSConfig)
    assert (
        "\nkept a step             at most 200 (not truncated, then 0 to 1,000 tokens, then of prompts with "
        "a pass rate above 0, then scored above 0, then at most 1 of each answer, "
        "then the 2 most different)\n"
    ) in plan(config, num_prompts=250)
    assert num_optimizer_steps(config, 250) == 4 + 4 + 2  # 200, 200 and 100 rows, 64 at a time


@pytest.mark.parametrize("name", SECTIONS)
def test_every_selector_has_words(tree, name):
    needed: dict[str, Any] = {
        "threshold": {"at_least": 1},
        "top_fraction": {"fraction": 0.25},
        "length": {"min_tokens": 2},
        "diverse": {"k": 3},
        "function": {"function": "os.path:join"},
        "pessimistic": {"components": ["helpful", "harmless"]},
    }
    config = load_config(tree(**{KEY: [{"name": name, **needed.get(name, {})}]}), TrainRSConfig)
    (line,) = [line for line in plan(config).splitlines() if line.startswith("kept a step")]
    assert line.endswith(")")
    assert not line.endswith("()")


@pytest.mark.parametrize(
    ("selectors", "most"),
    [
        ([], 30),
        ([{"name": "all"}], 80),
        ([{"name": "topk"}], 30),
        ([{"name": "topk", "k": 2}], 20),
        ([{"name": "median"}], 40),
        ([{"name": "top_fraction", "fraction": 0.25}], 20),
        ([{"name": "top_fraction", "fraction": 0.001}], 1),
        ([{"name": "topk", "k": 4}, {"name": "top_fraction", "fraction": 0.25}], 10),
        ([{"name": "top_fraction", "fraction": 0.5}, {"name": "topk", "k": 1}], 10),
        ([{"name": "percentile"}, {"name": "positive"}], 80),
    ],
)
def test_what_a_step_of_ten_prompts_with_eight_rollouts_keeps_at_most(tree, selectors, most):
    changes = {KEY: selectors, "model.rs.num_rollouts_per_prompt": 8, "model.rs.top_n_rollouts": 3}
    rs = load_config(tree(**changes), TrainRSConfig).model.rs
    assert rs.most_kept([10]) == most
    assert most_kept(rs.selection, top_n=3, num_prompts=0, num_rollouts=8) == 0
