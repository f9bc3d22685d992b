"""A judge's config, and that of its server."""

from __future__ import annotations

import logging

import pytest

from rs_aligner.config import (
    ServeRewardConfig,
    load_config,
)
from tests.config.conftest import compose, problems

pytestmark = pytest.mark.timeout(60)


def test_the_yaml_file_of_the_server_and_the_schema_have_the_same_defaults():
    written = load_config(compose("serve_reward", ["judge.name=length"]), ServeRewardConfig)
    assert written == load_config({"judge": {"name": "length"}}, ServeRewardConfig)
    in_file = set(compose("serve_reward", []))
    assert in_file == set(ServeRewardConfig.model_fields)


def test_a_judge_is_either_a_function_or_a_name(tmp_path):
    config = load_config(compose("serve_reward", ["judge.name=exact_answer"]), ServeRewardConfig)
    assert (config.inference.host, config.inference.port) == ("127.0.0.1", 5555)
    assert problems({}, ServeRewardConfig)[0].startswith("judge: nothing is set; set one of judge.name")
    both = {"judge": {"name": "sentiment", "function": "a:b"}}
    assert problems(both, ServeRewardConfig)[0].startswith("judge: function and name is set; set one of")
    for wrong in ("judge.py", ":f", "judge:", "judge:a b"):
        assert (
            "should be path/to/file.py:name" in problems({"judge": {"function": wrong}}, ServeRewardConfig)[0]
        )
    gone = {"judge": {"function": f"{tmp_path}/judge.py:score"}}
    assert "there is no such file" in problems(gone, ServeRewardConfig)[0]
    (tmp_path / "judge.py").touch()
    assert load_config(gone, ServeRewardConfig).judge.function == f"{tmp_path}/judge.py:score"
    assert (
        "Hugging Face folder"
        in problems({"judge": {"name": "sentiment"}, "tokenizer": f"{tmp_path}/none"}, ServeRewardConfig)[0]
    )


def test_the_parts_of_a_weighted_judge_are_checked_like_judges():
    overrides = ["judge.parts={right: {name: final_answer, weight: 2}, short: {name: length}}"]
    config = load_config(compose("serve_reward", overrides), ServeRewardConfig)
    assert (config.judge.parts["right"].weight, config.judge.parts["short"].weight) == (2.0, 1.0)
    wrong = {"judge": {"parts": {"a": {"weight": 1}, "b": {"function": "x"}}}}
    first, second = problems(wrong, ServeRewardConfig)
    assert first.startswith("judge.parts.a: nothing is set; set one of judge.parts.a.name")
    assert second.startswith('judge.parts.b.function is "x": should be path/to/file.py:name')
    assert (
        "judge.parts.a.nam is not a key"
        in problems({"judge": {"parts": {"a": {"nam": "length"}}}}, ServeRewardConfig)[0]
    )


def test_a_standardised_reward_needs_its_mean_and_deviation(caplog):
    def tree(**standard):
        return {"judge": {"name": "length"}, "model": {"reward_standardization": standard}}

    assert problems(tree(enable=True, mean=1.0), ServeRewardConfig) == [
        "model.reward_standardization.std must be set: reward_standardization is enabled"
    ]
    assert "should be greater than 0" in problems(tree(enable=True, mean=1.0, std=0), ServeRewardConfig)[0]
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(tree(enable=True, mean=1.0, std=2.0), ServeRewardConfig)
        assert not caplog.records
        load_config(tree(mean=1.0), ServeRewardConfig)
    assert ["mean has no effect" in record.getMessage() for record in caplog.records] == [True]


def test_the_files_of_the_server_have_to_be_there(tmp_path):
    judge = {"name": "length"}
    gone = str(tmp_path / "gone")
    lines = problems(
        {
            "judge": judge,
            "inference": {"token_file": gone},
            "check": True,
            "check_data": gone,
            "check_policy": gone,
        },
        ServeRewardConfig,
    )
    assert [line.partition(" is ")[0] for line in lines] == [
        "inference.token_file",
        "check_data",
        "check_policy",
    ]
    (line,) = problems({"judge": judge, "check_policy": str(tmp_path)}, ServeRewardConfig)
    assert line.endswith("plays a part in a check only; set check=true, or drop it")
