"""The cache's budget: what does not fit waits, nothing is prefilled twice, and the bound holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rs_aligner.generation import cache as cache_module
from rs_aligner.generation import waves
from rs_aligner.generation.network import Network
from rs_aligner.generation.sampling import Controls
from rs_aligner.rollout import Rollout
from tests.generation.conftest import Load
from tests.generation.test_decoding import NoText, prompts
from tests.tiny import save_tiny

CONTROLS = Controls(temperature=1.2, max_length=40)
NUM = 6


@pytest.fixture(scope="module", params=["packed", "shared"])
def network(request: pytest.FixtureRequest, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "PACKED_UP_TO", 0 if request.param == "shared" else 10**6)
        yield load(save_tiny("llama", tmp_path_factory.mktemp("budget")))


def draw(network: Network, budget: int | None) -> list[Rollout]:
    stream = waves.generate(
        network, NoText(), prompts(), NUM, CONTROLS, seed=3, step=1, kv_cache_bytes=budget
    )
    return sorted(stream, key=lambda rollout: (rollout.group, rollout.index))


def tokens_of(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


@pytest.mark.parametrize("places", [150, 400, 1500, 10**6])
def test_a_budget_changes_no_rollout_and_is_kept(
    network: Network, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    budget = places * network.bytes_per_token
    held: list[int] = []
    decode = waves._Wave._decode

    def watched(wave: waves._Wave) -> None:
        decode(wave)
        held.append(sum(cohort.cache.nbytes for cohort in wave.cohorts))

    monkeypatch.setattr(waves._Wave, "_decode", watched)
    got = draw(network, budget)
    assert max(held) <= budget
    monkeypatch.undo()
    assert tokens_of(got) == tokens_of(draw(network, None))


def test_a_tight_budget_still_decodes_several_rollouts_at_once(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    decode = waves._Wave._decode

    def watched(wave: waves._Wave) -> None:
        sizes.append(sum(len(cohort.rows) for cohort in wave.cohorts))
        decode(wave)

    monkeypatch.setattr(waves._Wave, "_decode", watched)
    draw(network, 600 * network.bytes_per_token)
    assert 1 < max(sizes) < NUM * len(prompts())


def test_no_prompt_is_prefilled_twice_even_if_its_rollouts_are_admitted_apart(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefilled: list[int] = []
    prefill = network.prefill

    def watched(tokens: Any, lengths: list[int]) -> Any:
        prefilled.extend(lengths)
        return prefill(tokens, lengths)

    monkeypatch.setattr(network, "prefill", watched)
    draw(network, 160 * network.bytes_per_token)
    assert sorted(prefilled) == sorted(len(prompt.token_ids) for _, prompt in prompts())


def test_the_same_wave_decoded_twice_is_equal_bit_for_bit(network: Network) -> None:
    budget = 400 * network.bytes_per_token
    first, second = draw(network, budget), draw(network, budget)
    assert first == second  # log-probabilities included


def test_a_budget_too_small_for_one_rollout_is_refused_with_what_it_needs(network: Network) -> None:
    with pytest.raises(ValueError, match=r"kv_cache_bytes=\d+ is too little") as refused:
        draw(network, 20 * network.bytes_per_token)
    needed = int(str(refused.value).split()[-1])
    assert len(draw(network, needed)) == NUM * len(prompts())


def test_single_rollouts_may_have_limits_of_their_own(network: Network) -> None:
    limits = {(group, index): 1 + 3 * index for group, _ in prompts() for index in range(NUM)}
    stream = waves.generate(network, NoText(), prompts(), NUM, CONTROLS, seed=3, step=1, limits=limits)
    free = {(r.group, r.index): r.token_ids for r in draw(network, None)}
    for rollout in stream:
        assert rollout.token_ids == free[rollout.group, rollout.index][: limits[rollout.group, rollout.index]]


@pytest.mark.parametrize(("dim", "kind"), [(8, cache_module.PackedCache), (64, cache_module.SharedCache)])
def test_the_kind_of_cache_follows_the_size_of_the_heads(
    monkeypatch: pytest.MonkeyPatch, dim: int, kind: type
) -> None:
    monkeypatch.setattr(cache_module, "PACKED_UP_TO", 128)
    prompt = cache_module.PromptCache([torch.zeros(1, 8, 3, dim)], [torch.zeros(1, 8, 3, dim)], [3])
    assert isinstance(cache_module.new_cache(prompt, [2], 4), kind)
