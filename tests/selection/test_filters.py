"""Selectors that look at what a rollout or a group is, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rs_aligner.config import RSConfig
from rs_aligner.selection import Chain, Progress, chain_of
from rs_aligner.selection.filters import VersionLag
from tests.selection.steps import chain, group, select


def test_what_reached_the_length_limit_is_dropped():
    assert select([group([1.0, 2.0, 3.0], truncated=[0, 2])], {"name": "truncated"}) == [[1]]


@pytest.mark.parametrize(
    ("bounds", "fits"),
    [
        ({"min_tokens": 2}, [1, 2, 3]),
        ({"max_tokens": 2}, [0, 1]),
        ({"min_tokens": 2, "max_tokens": 3}, [1, 2]),
    ],
)
def test_lengths_are_within_their_bounds(bounds, fits):
    groups = [group([0.0] * 4, tokens=[(7,) * (n + 1) for n in range(4)])]
    assert select(groups, {"name": "length", **bounds}) == [fits]


@pytest.mark.parametrize(("most", "stays"), [(0, [2]), (1, [1, 2]), (2, [0, 1, 2])])
def test_what_too_old_a_policy_sampled_is_rejected_with_its_reason(most, stays):
    found = group([9.0, 1.0, 2.0])
    found.rollouts = [replace(one, policy_version=2 + n) for n, one in enumerate(found.rollouts)]
    selection = Chain([VersionLag(most)]).select([found], Progress(step=5, num_steps=9))
    assert selection.keep[0].nonzero().flatten().tolist() == stays
    reasons = {reason for n, reason in enumerate(selection.reasons[0]) if n not in stays}
    assert reasons <= {"of too old a version"}
    assert "rejected/of_too_old_version" in selection.reason_counts()
    # A step of a cycle that samples nothing is behind by design.
    later = Progress(step=6, num_steps=9, improve_step=1, num_improve_steps=2)
    assert torch.equal(Chain([VersionLag(most)]).select([found], later).keep, selection.keep)


def test_only_a_training_whose_servers_sample_asks_for_the_version():
    served = {"engine": "vllm", "endpoints": ["node3:8000"], "sync_interval": 2, "max_version_lag": 1}
    for generation, offline, most in ((served, (), 1), ({}, (), None), (served, ("file",), None)):
        rs = RSConfig.model_validate({"generation": generation, "offline": offline})
        asked = [one.most for one in chain_of(rs).selectors if isinstance(one, VersionLag)]
        assert asked == ([] if most is None else [most])
    each_step = {**served, "sync_interval": 1}
    banked = RSConfig.model_validate({"generation": each_step, "pool": {"max_staleness": 2}})
    assert chain_of(banked).selectors[0].most == 3  # the bank has a bound of its own


NEVER, SELDOM, HALF, ALWAYS = [0.0] * 4, [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, None, None], [1.0] * 4


@pytest.mark.parametrize(
    ("bounds", "stays"),
    [
        ({}, [False, True, True, False]),
        ({"min": 0.01, "max": 0.99}, [False, True, True, False]),
        ({"max": None}, [False, True, True, True]),
        ({"min": None, "max": 0.5}, [True, True, False, False]),
        ({"min": 0.25}, [False, False, True, False]),
        ({"above": -1.0, "max": None}, [True, True, True, True]),
    ],
)
def test_prompts_are_dropped_whose_pass_rate_is_out_of_bounds(bounds, stays):
    groups = [group(rewards) for rewards in (NEVER, SELDOM, HALF, ALWAYS)]
    chosen = select(groups, {"name": "pass_rate", **bounds})
    assert [bool(places) for places in chosen] == stays
    assert chosen[2] in ([0, 1], [])


def test_the_pass_rate_counts_what_earlier_selectors_rejected():
    groups = [group([1.0, 0.0])]
    assert select(groups, {"name": "positive"}, {"name": "pass_rate"}) == [[0]]


USERS = """
import numpy as np

def cheap(prompt, responses, rewards, metadata, *, key="max"):
    assert prompt == "prompt"
    return [reward <= metadata[key] and text != "text 0" for text, reward in zip(responses, rewards)]

def as_array(prompt, responses, rewards, metadata):
    return np.array(rewards) > 1

def spoils(prompt, responses, rewards, metadata):
    metadata.clear()
    return [True] * len(responses)

def too_few(prompt, responses, rewards, metadata):
    return [True]

def numbers(prompt, responses, rewards, metadata):
    return rewards

def fails(prompt, responses, rewards, metadata):
    return [metadata["no such key"]]

def other(responses):
    return responses
"""


@pytest.fixture
def users(tmp_path: Path) -> str:
    file = tmp_path / "users_selectors.py"
    file.write_text(USERS)
    return str(file)


def test_a_users_function_sees_what_is_left_of_a_group(users):
    groups = [group([1.0, 2.0, None, 3.0, 4.0], truncated=[1], metadata={"max": 3.0}), group([None])]
    selectors = [{"name": "truncated"}, {"name": "function", "function": f"{users}:cheap"}]
    selection = chain(*selectors).select(groups, _now())
    assert [list(row) for row in selection.reasons] == [
        ["rejected by cheap", "truncated", "not scored", "kept", "rejected by cheap"],
        ["not scored"],
    ]
    assert selection.reason_counts()["rejected/rejected_by_cheap"] == 2


def test_a_users_function_may_answer_with_an_array_and_take_settings_and_changes_nothing(users):
    groups = [group([1.0, 2.0], metadata={"least": 9.0})]
    assert select(groups, {"name": "function", "function": f"{users}:as_array"}) == [[1]]
    named = {"name": "function", "function": f"{users}:cheap", "kwargs": {"key": "least"}}
    assert select(groups, named) == [[1]]
    assert select(groups, {"name": "function", "function": f"{users}:spoils"}) == [[0, 1]]
    assert groups[0].prompt.metadata == {"least": 9.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "too_few",
            r"users_selectors.py:too_few returned \[True\] for prompt p: should be a list of 2 bools",
        ),
        ("numbers", r"numbers returned \[1.0, 2.0\] for prompt p: should be a list of 2 bools"),
        ("fails", "selection.0.function: .*fails failed for prompt p: KeyError: 'no such key'"),
    ],
)
def test_a_users_function_that_fails_is_named_with_its_prompt(users, name, message):
    with pytest.raises(ValueError, match=message):
        select([group([1.0, 2.0])], {"name": "function", "function": f"{users}:{name}"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", r"model\.rs\.selection\.0\.function: .* has no 'nothing'"),
        ("USERS", "has no 'USERS'"),
        ("other", r"cannot be called as f\(prompt, responses, rewards, metadata\)"),
    ],
)
def test_a_users_function_that_cannot_be_called_is_refused_at_once(users, name, message):
    with pytest.raises(ValueError, match=message):
        chain({"name": "function", "function": f"{users}:{name}"})
    with pytest.raises(ValueError, match=r"model\.rs\.selection\.1\.function: there is no file"):
        chain({"name": "all"}, {"name": "function", "function": "nowhere.py:f"})


def _now():
    from rs_aligner.selection import Progress

    return Progress(1, 1)
