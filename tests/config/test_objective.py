"""The keys of `model.rs.objective`: nothing is ignored silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import ConfigError, TrainRSConfig, load_config

pytestmark = pytest.mark.timeout(60)
KEY = "model.rs.objective"


def problems(tree: Any, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(
            tree(**{f"{KEY}.{name.replace('__', '.')}": value for name, value in keys.items()}), TrainRSConfig
        )
    return list(error.value.problems)


def test_the_default_is_the_plain_recipe(tree):
    objective = load_config(tree(), TrainRSConfig).model.rs.objective
    assert (objective.advantage, objective.bounds, objective.kl) == ("none", None, 0.0)
    assert objective.offload_reference
    assert (objective.anchor.files, objective.anchor.share, objective.anchor.weight) == ((), 0.0, 1.0)


def test_a_recipe_with_everything_is_read(tree, workplace: Path):
    file = str(workplace / "train.jsonl")
    keys = {
        "advantage": "group",
        "positives_only": False,
        "clip": 0.2,
        "clip_high": 0.28,
        "kl": 0.05,
        "kl_estimator": "low_var_kl+",
        "offload_reference": False,
        "anchor.files": file,
        "anchor.share": 0.25,
        "anchor.weight": 0.5,
    }
    config = load_config(tree(**{f"{KEY}.{name}": value for name, value in keys.items()}), TrainRSConfig)
    objective = config.model.rs.objective
    assert objective.bounds == (0.2, 0.28)
    assert (objective.anchor.files, objective.anchor.share) == ((file,), 0.25)


def test_the_bound_from_above_is_that_from_below_unless_it_is_set(tree):
    config = load_config(tree(**{f"{KEY}.advantage": "group", f"{KEY}.clip": 0.1}), TrainRSConfig)
    assert config.model.rs.objective.bounds == (0.1, 0.1)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"positives_only": True},
            [f"{KEY}.positives_only is true: needs {KEY}.advantage, group or leave_one_out; set it to false"],
        ),
        (
            {"clip": 0.2},
            [f"{KEY}.clip is 0.2: needs {KEY}.advantage, group or leave_one_out; set it to null"],
        ),
        (
            {"advantage": "group", "clip_high": 0.3},
            [f"{KEY}.clip_high is 0.3: needs {KEY}.clip, the bound from below; set it to null"],
        ),
        (
            {"anchor__share": 0.2},
            [f"{KEY}.anchor.share is 0.2: needs {KEY}.anchor.files to take rows from; or set it to 0"],
        ),
        (
            {"kl_estimator": "k1+"},
            [f'{KEY}.kl_estimator is "k1+": needs {KEY}.kl, the weight of the term; set it to k3'],
        ),
        ({"anchor__weight": 2}, [f"{KEY}.anchor.weight is 2.0: needs {KEY}.anchor.files; or set it to 1"]),
    ],
)
def test_keys_that_need_others_say_which(tree, keys, expected):
    assert problems(tree, **keys) == expected


def test_anchor_files_need_a_share_and_must_be_there(tree, workplace: Path):
    file, folder = str(workplace / "train.jsonl"), str(workplace / "policy")
    (line,) = problems(tree, anchor__files=file)
    assert line == f"{KEY}.anchor.share is 0.0: should be above 0, since {KEY}.anchor.files is set"
    lines = problems(tree, anchor__files=["missing.jsonl", folder], anchor__share=0.5)
    assert [line.partition(";")[0] for line in lines] == [
        f'{KEY}.anchor.files is "missing.jsonl": is not there',
        f'{KEY}.anchor.files is "{folder}": is a folder',
    ]


def test_one_rollout_a_prompt_has_nothing_to_be_compared_with(tree):
    changed = tree(**{f"{KEY}.advantage": "group", "model.rs.num_rollouts_per_prompt": 1})
    with pytest.raises(ConfigError) as error:
        load_config(changed, TrainRSConfig)
    (line,) = error.value.problems
    assert line == (
        f'{KEY}.advantage is "group": compares the rollouts of a prompt: '
        "model.rs.num_rollouts_per_prompt should be at least 2"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip", 0),
        ("clip", 1.5),
        ("clip_high", 0),
        ("kl", -1),
        ("anchor__share", 1.0),
        ("anchor__weight", 0),
        ("advantage", "mean"),
        ("kl_estimator", "k4"),
        ("kl_estimator", "k2+"),
    ],
)
def test_values_out_of_range_are_refused(tree, key, value):
    (line,) = problems(tree, **{key: value})
    assert line.startswith(f"{KEY}.{key.replace('__', '.')} is ")
