"""Keys of pools, budgets and scored rollouts: what needs what, and what bounds what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import ConfigError, TrainRSConfig, load_config

pytestmark = pytest.mark.timeout(60)
UNTIL = {"accepted": 1, "at_least": 1, "max_rollouts": 12}


@pytest.fixture
def problems(tree):
    def of(**keys: Any) -> list[str]:
        with pytest.raises(ConfigError) as error:
            load_config(
                tree(**{f"model.rs.{k.replace('__', '.')}": v for k, v in keys.items()}), TrainRSConfig
            )
        return list(error.value.problems)

    return of


@pytest.fixture
def read(tree):
    def of(**keys: Any) -> TrainRSConfig:
        return load_config(
            tree(**{f"model.rs.{k.replace('__', '.')}": v for k, v in keys.items()}), TrainRSConfig
        )

    return of


@pytest.fixture
def scored(workplace: Path) -> dict[str, Any]:
    """The keys of a run on a file of scored rollouts."""
    (workplace / "scored.jsonl").write_text('{"text": "a", "responses": ["b"], "rewards": [1]}\n')
    return {"offline": str(workplace / "scored.jsonl")}


def test_where_prompts_get_as_many_as_they_need_their_bound_is_that_of_a_prompt(read, problems):
    read(until=UNTIL, top_n_rollouts=12, num_rollouts_per_prompt=4)
    read(until=UNTIL, selection=[{"name": "topk", "k": 12}])
    read(until=UNTIL, num_rollouts_per_prompt=1, objective__advantage="group")
    assert problems(until=UNTIL, top_n_rollouts=13) == [
        "model.rs.top_n_rollouts is 13: should be at most model.rs.until.max_rollouts = 12"
    ]
    assert problems(until=UNTIL, selection=[{"name": "diverse", "k": 13}]) == [
        "model.rs.selection.0.k is 13: should be at most model.rs.until.max_rollouts = 12"
    ]
    (line,) = problems(until={**UNTIL, "max_rollouts": 1}, objective__advantage="group")
    assert line.endswith(
        "compares the rollouts of a prompt: model.rs.until.max_rollouts should be at least 2"
    )


def test_without_a_budget_the_bound_is_that_of_every_prompt(problems):
    assert problems(top_n_rollouts=5) == [
        "model.rs.top_n_rollouts is 5: should be at most model.rs.num_rollouts_per_prompt = 4"
    ]


def test_until_samples_and_a_greedy_choice_would_be_the_same_each_time(problems):
    until = {"accepted": 1, "at_least": 1}
    assert problems(until=until, sampling_params__use_greedy=True) == [
        "model.rs.sampling_params.use_greedy is true: model.rs.until samples: set it to false"
    ]


def offline(tree, scored: dict[str, Any], **keys: Any) -> TrainRSConfig:
    changes = {f"model.rs.{k.replace('__', '.')}": v for k, v in {**scored, **keys}.items()}
    return load_config(tree(**{**changes, "model.data.data_prefix.train": []}), TrainRSConfig)


def test_files_have_their_own_numbers_of_rollouts(tree, scored):
    offline(tree, scored, top_n_rollouts=30)
    offline(tree, scored, selection=[{"name": "topk", "k": 30}])
    offline(tree, scored, num_rollouts_per_prompt=1, objective__advantage="group")


def test_clipped_ratios_need_log_probabilities_which_files_do_not_have(tree, scored, workplace):
    with pytest.raises(ConfigError) as error:
        offline(tree, scored, objective__advantage="group", objective__clip=0.2)
    assert error.value.problems == (
        "model.rs.objective.clip is 0.2: needs the sampling policy's log-probabilities, which the file "
        f"{scored['offline']} does not have; set it to null, or name a run's rollouts folder in "
        "model.rs.offline",
    )
    (workplace / "rollouts").mkdir()
    ledger = {"offline": str(workplace / "rollouts")}
    assert offline(tree, ledger, objective__advantage="group", objective__clip=0.2).model.rs.objective.clip


def test_scored_rollouts_are_no_bank_and_have_no_prompts_beside_them(tree, scored, problems):
    with pytest.raises(ConfigError) as error:
        offline(tree, scored, pool__max_staleness=2)
    assert error.value.problems == (
        "model.rs.pool.max_staleness is 2: the rollouts of model.rs.offline come again in every epoch; "
        "set it to 0",
    )
    (beside,) = problems(**scored)
    assert "nothing is sampled with model.rs.offline; set model.data.data_prefix.train=[]" in beside
    with pytest.raises(ConfigError) as error:
        offline(tree, {"offline": "nowhere.jsonl"})
    (missing,) = error.value.problems
    assert missing.startswith('model.rs.offline is "nowhere.jsonl": is not there; name files, or the ')


def test_the_starting_weights_are_kept_where_something_asks_for_them(tree, read, scored):
    assert read().model.rs.needs_start  # the KL is measured on kl_samples
    assert not read(kl_samples=0).model.rs.needs_start
    for keys in ({"objective__kl": 0.1}, {"pool__restart": True}):
        assert read(kl_samples=0, **keys).model.rs.needs_start
        assert offline(tree, scored, **keys).model.rs.needs_start
    assert not offline(tree, scored).model.rs.needs_start  # others sampled these


def test_all_problems_of_a_pool_come_at_once(problems):
    lines = problems(
        pool={"improve_steps": 2, "max_staleness": 1},
        until={"accepted": 5, "at_least": 1, "max_rollouts": 4},
        sampling_params__use_greedy=True,
        num_rollouts_per_prompt=1,
    )
    assert [line.partition(" is ")[0] for line in lines] == [
        "model.rs.pool.max_staleness",
        "model.rs.until.accepted",
        "model.rs.sampling_params.use_greedy",
    ]
