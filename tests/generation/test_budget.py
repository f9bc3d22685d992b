"""The cache's budget: what does not fit waits, nothing is prefilled twice, and the bound holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rs_aligner.generation.cohorts import CohortWave
from rs_aligner.generation.native import LANES
from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.generation.paged import PagedWave
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.rollout import Prompt, Rollout
from tests.drawing import request_of
from tests.generation.conftest import AnyDecoder, Load
from tests.generation.test_decoding import NoText, prompts
from tests.tiny import save_tiny

CONTROLS = Controls(temperature=1.2, max_length=24)
NUM = 6


@pytest.fixture(scope="module")
def decoder(load: Load, tmp_path_factory: pytest.TempPathFactory) -> AnyDecoder:
    return load(save_tiny("llama", tmp_path_factory.mktemp("budget")))


def bytes_of_a_token(decoder: AnyDecoder) -> int:
    if isinstance(decoder, KernelDecoder):
        return decoder.network.bytes_per_page // LANES
    return decoder.network.bytes_per_token


def bytes_held(wave: CohortWave | PagedWave) -> int:
    """What a wave has taken of its budget."""
    if isinstance(wave, CohortWave):
        return sum(cohort.cache.nbytes for cohort in wave.cohorts)
    return (wave.pool.size - wave.pool.num_free) * wave.network.bytes_per_page


def num_alive(wave: CohortWave | PagedWave) -> int:
    return sum(len(c.rows) for c in wave.cohorts) if isinstance(wave, CohortWave) else len(wave.alive)


def watch(monkeypatch: pytest.MonkeyPatch, look: Callable[[Any], int]) -> list[int]:
    """What `look` finds at a wave after each step of decoding."""
    seen: list[int] = []
    for kind in (CohortWave, PagedWave):
        decode = kind._decode

        def watched(wave: Any, decode: Callable[[Any], Any] = decode) -> Any:
            logits = decode(wave)
            seen.append(look(wave))
            return logits

        monkeypatch.setattr(kind, "_decode", watched)
    return seen


def draw(decoder: AnyDecoder, budget: int | None) -> list[Rollout]:
    decoder.kv_cache_bytes = budget
    stream = generate(decoder, NoText(), request_of(prompts(), NUM, CONTROLS), seed=3)
    return sorted(stream, key=lambda rollout: (rollout.group, rollout.index))


@pytest.fixture(scope="module")
def free(decoder: AnyDecoder) -> list[Rollout]:
    """What is drawn where nothing has to wait."""
    return draw(decoder, None)


def tokens_of(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


@pytest.mark.parametrize("places", [150, 400, 1500, 10**6])
def test_a_budget_changes_no_rollout_and_is_kept(
    decoder: AnyDecoder, free: list[Rollout], monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    budget = places * bytes_of_a_token(decoder)
    held = watch(monkeypatch, bytes_held)
    got = draw(decoder, budget)
    assert max(held) <= budget
    assert tokens_of(got) == tokens_of(free)


def test_a_tight_budget_still_decodes_several_rollouts_at_once(
    decoder: AnyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = watch(monkeypatch, num_alive)
    draw(decoder, 600 * bytes_of_a_token(decoder))
    assert 1 < max(sizes) < NUM * len(prompts())


def test_no_prompt_is_prefilled_twice_even_if_its_rollouts_are_admitted_apart(
    decoder: AnyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefilled: list[int] = []
    if isinstance(decoder, KernelDecoder):
        run_prompts = PagedWave._prefill

        def watched(wave: PagedWave, new: dict[int, Prompt]) -> None:
            prefilled.extend(len(prompt.token_ids) for prompt in new.values())
            run_prompts(wave, new)

        monkeypatch.setattr(PagedWave, "_prefill", watched)
    else:
        prefill = decoder.network.prefill

        def watched_too(tokens: Any, lengths: list[int]) -> Any:
            prefilled.extend(lengths)
            return prefill(tokens, lengths)

        monkeypatch.setattr(decoder.network, "prefill", watched_too)
    draw(decoder, 160 * bytes_of_a_token(decoder))
    assert sorted(prefilled) == sorted(len(prompt.token_ids) for prompt in prompts())


def test_the_same_wave_decoded_twice_is_equal_bit_for_bit(decoder: AnyDecoder) -> None:
    budget = 400 * bytes_of_a_token(decoder)
    first, second = draw(decoder, budget), draw(decoder, budget)
    assert first == second  # log-probabilities included


def test_a_budget_too_small_for_one_rollout_is_refused_with_what_it_needs(decoder: AnyDecoder) -> None:
    with pytest.raises(ValueError, match=r"kv_cache_bytes=\d+ is too little") as refused:
        draw(decoder, 20 * bytes_of_a_token(decoder))
    needed = int(str(refused.value).split()[-1])
    assert len(draw(decoder, needed)) == NUM * len(prompts())


def test_single_rollouts_may_have_limits_of_their_own(decoder: AnyDecoder, free: list[Rollout]) -> None:
    limits = {(group, index): 1 + 3 * index for group in range(len(prompts())) for index in range(NUM)}
    decoder.kv_cache_bytes = None
    stream = generate(decoder, NoText(), request_of(prompts(), NUM, CONTROLS), seed=3, limits=limits)
    whole = {(r.group, r.index): r.token_ids for r in free}
    for rollout in stream:
        key = rollout.group, rollout.index
        assert rollout.token_ids == whole[key][: limits[key]]
