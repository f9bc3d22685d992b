"""Which servers sample, and how they are asked: what cannot work is told with its key."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rs_aligner.config import GenerationConfig, RSConfig, SamplingParams
from rs_aligner.config.base import check

SERVED: dict[str, Any] = {"engine": "vllm", "endpoints": ["node3:8000"]}


def problems(**settings: Any) -> list[str]:
    return list(check(GenerationConfig.model_validate(settings), "model.rs.generation"))


def test_servers_are_addresses_and_one_alone_needs_no_list() -> None:
    assert problems(engine="vllm", endpoints=["node3:8000", "[::1]:8000", "https://a.example.com/x"]) == []
    assert problems(engine="vllm", endpoints="node3:8000") == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"engine": "vllm"},
            "model.rs.generation.endpoints must be set with",
        ),
        ({"endpoints": ["node3:8000"]}, "plays a part with model.rs.generation.engine=vllm only"),
        (
            SERVED | {"endpoints": ["node3"]},
            "model.rs.generation.endpoints: 'node3' should be \"host:port\"",
        ),
        (SERVED | {"endpoints": ["a:1", "http://a:1"]}, "names a server twice"),
        (SERVED | {"endpoints": ["http://a:1/v1"]}, "should end before /v1: http://a:1"),
        (
            SERVED | {"servers": {"token_file": "nowhere"}},
            'servers.token_file is "nowhere": there is no such',
        ),
        (SERVED | {"servers": {"ca_file": "nowhere"}}, 'servers.ca_file is "nowhere": there is no such file'),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_told_with_its_key(settings: dict[str, Any], words: str) -> None:
    (line,) = problems(**settings)
    assert words in line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SERVED | {"kv_cache_bytes": 1}, "kv_cache_bytes has no effect: vLLM's servers have"),
        (
            {"servers": {"max_in_flight": 1}},
            "servers has no effect: it is for model.rs.generation",
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_warned_of(
    settings: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        assert problems(**settings) == []
    assert words in caplog.text


@pytest.mark.parametrize("temperature", [0.009, 2.1])
def test_temperatures_that_vllm_takes_for_others_are_refused_by_name(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature)
    (line,) = GenerationConfig.model_validate(SERVED).sampling_problems("model.rs.sampling_params", sampling)
    assert line.startswith(f"model.rs.sampling_params.temperature is {temperature}: vLLM takes 0.01 to 2")
    greedy = SamplingParams(temperature=temperature, use_greedy=True)
    assert not list(GenerationConfig.model_validate(SERVED).sampling_problems("a", greedy))
    assert not list(GenerationConfig().sampling_problems("a", sampling))


def of_training(**settings: Any) -> list[str]:
    return list(check(RSConfig.model_validate(settings), "model.rs"))


def test_servers_that_would_be_further_behind_than_may_be_trained_on_are_an_error_with_both_keys() -> None:
    assert of_training(generation=SERVED | {"sync_interval": 3, "max_version_lag": 2}) == []
    (line,) = of_training(generation=SERVED | {"sync_interval": 4, "max_version_lag": 2})
    assert "model.rs.generation.sync_interval is 4: model.rs.generation.max_version_lag = 2 rejects" in line
    assert line.endswith("set it to 3, or sync_interval to 3")


@pytest.mark.parametrize("pool", [{"improve_steps": 2}, {"max_staleness": 1}])
def test_older_rollouts_are_used_in_one_way(pool: dict[str, int]) -> None:
    (name,) = pool
    assert of_training(generation=SERVED | {"max_version_lag": 1}, pool=pool) == []
    (line,) = of_training(generation=SERVED | {"sync_interval": 2, "max_version_lag": 1}, pool=pool)
    assert f"model.rs.pool.{name} uses older rollouts" in line
