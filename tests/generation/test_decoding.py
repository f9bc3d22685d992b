"""The decoder samples from exactly the policy, and how rollouts are decoded together changes none of them.

Logits do change in the last bits with the shape of a batch. Where tokens are compared here, that has been
too little to change one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.generation import cohort, cohorts, paged
from rs_aligner.generation.decoder import Wave
from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.generation.rows import Ended
from rs_aligner.generation.sampling import Controls, choose, penalize, uniforms
from rs_aligner.generation.waves import generate
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.rollout import Prompt, Rollout
from tests.drawing import request_of
from tests.generation.conftest import AnyDecoder, Load
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)
ENDS = (7, 20, 33, 41, 58, 77)  # several, so that rows end at different times
SAMPLED = Controls(temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.2, max_length=16, min_length=2)


class NoText:
    """A tokenizer for a model that has none."""

    eos_ids: tuple[int, ...] = ENDS

    def continuation(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        return " ".join(map(str, response))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def decoder(load: Load, folder: Path) -> AnyDecoder:
    return load(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def prompts(lengths: Sequence[int] = (3, 11, 1, 20, 7)) -> list[Prompt]:
    """Prompts of these lengths."""
    rng = random.Random(2)
    ids = [tuple(rng.randrange(96) for _ in range(n)) for n in lengths]
    return [Prompt(str(i), "", tokens, position=10 + i) for i, tokens in enumerate(ids)]


def decode(
    decoder: AnyDecoder, batch: list[Prompt], num: int = 4, *, seed: int = 1, **asked: Any
) -> list[Rollout]:
    """In (prompt, rollout) order."""
    rollouts = generate(decoder, NoText(), request_of(batch, num, SAMPLED, **asked), seed=seed)
    return sorted(rollouts, key=lambda rollout: (rollout.group, rollout.index))


def tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


def assert_same(some: list[Rollout], others: list[Rollout]) -> None:
    assert tokens(some) == tokens(others)
    for one, other in zip(some, others, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert (one.seed, one.text, one.finish_reason) == (other.seed, other.text, other.finish_reason)


# The same rollouts however they are decoded


@pytest.mark.parametrize("wave_size", [1, 2, 5, 9])
def test_rollouts_do_not_depend_on_the_size_of_a_wave(decoder: AnyDecoder, wave_size: int) -> None:
    assert_same(decode(decoder, prompts(), wave_size=wave_size), decode(decoder, prompts()))


def test_a_prompt_alone_gives_the_rollouts_it_gives_beside_others(decoder: AnyDecoder) -> None:
    together = decode(decoder, prompts())
    for i, pair in enumerate(prompts()):
        assert_same(decode(decoder, [pair]), together[4 * i : 4 * i + 4])


def test_more_rollouts_leave_the_first_ones_as_they_are(decoder: AnyDecoder) -> None:
    two, four = decode(decoder, prompts(), 2), decode(decoder, prompts(), 4)
    assert_same(two, [rollout for rollout in four if rollout.index < 2])


@pytest.mark.parametrize("wave_size", [1, 3])
def test_on_kernels_not_a_bit_of_a_log_probability_depends_on_what_is_decoded_beside(
    load: Load, folder: Path, wave_size: int
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        decoder = load(folder, dtype)
        if not isinstance(decoder, KernelDecoder):
            pytest.skip("torch's products change in the last bits with the shape of a batch")
        assert decode(decoder, prompts(), wave_size=wave_size) == decode(decoder, prompts())


@pytest.mark.parametrize(("wave_size", "dtype"), [(2, torch.float32), (None, torch.bfloat16)])
def test_what_is_missing_of_a_wave_comes_with_the_bits_that_it_has_in_the_whole(
    load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch, wave_size: int | None, dtype: torch.dtype
) -> None:
    """As when a run was killed: kernels decode the missing rows alone, torch their waves, for the shapes."""
    decoder = load(folder, dtype)
    through = decode(decoder, prompts(), wave_size=wave_size)
    decoded: list[int] = []

    def counted(wave: Wave) -> Iterator[Ended]:
        decoded.append(len(wave.rows))
        yield from type(decoder).decode(decoder, wave)

    monkeypatch.setattr(decoder, "decode", counted)
    rng = random.Random(5)
    for known in (*(rng.sample(through, count) for count in (7, 18)), through):
        decoded.clear()
        seeds = {(one.group, one.index): (one.seed, one.policy_version) for one in known}
        request = replace(request_of(prompts(), 4, SAMPLED, wave_size=wave_size), known=seeds)
        found = sorted(generate(decoder, NoText(), request, seed=1), key=lambda one: (one.group, one.index))
        missing = [one for one in through if one not in known]
        assert found == missing
        waves = {one.group // (wave_size or 5) for one in missing}
        sizes = {wave: 4 * len(prompts()[wave * (wave_size or 5) :][: wave_size or 5]) for wave in waves}
        on_kernels = isinstance(decoder, KernelDecoder)
        assert sum(decoded) == (len(missing) if on_kernels else sum(sizes.values()))
        assert len(decoded) == len(waves)


def test_a_rollout_of_another_seed_or_version_is_sampled_anew(decoder: AnyDecoder) -> None:
    through = decode(decoder, prompts((3, 1)), 1)
    seeds = {(0, 0): (through[0].seed, 1), (1, 0): (through[1].seed + 1, 0)}
    request = replace(request_of(prompts((3, 1)), 1, SAMPLED), known=seeds)
    assert len(list(generate(decoder, NoText(), request, seed=1))) == 2


@pytest.mark.parametrize("together", [3, 7])
def test_decoding_a_few_rollouts_at_a_time_changes_nothing(
    decoder: AnyDecoder, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    usual = decode(decoder, prompts())
    monkeypatch.setattr(paged, "_rows_kept_near", lambda rows, size: min(together, len(rows)))
    assert_same(decode(decoder, prompts()), usual)


@pytest.mark.parametrize("pack_below", [0.0, 2.0])
def test_packing_the_cache_never_or_always_changes_nothing(
    decoder: AnyDecoder, monkeypatch: pytest.MonkeyPatch, pack_below: float
) -> None:
    usual = decode(decoder, prompts())
    lengths = {len(rollout.token_ids) for rollout in usual}
    assert len(lengths) > 4  # rows end at different times, so there is something to pack
    monkeypatch.setattr(cohort, "PACK_BELOW", pack_below)
    assert_same(decode(decoder, prompts()), usual)


@pytest.mark.parametrize("prefill_tokens", [1, 24])
def test_prefilling_in_smaller_chunks_changes_nothing(
    decoder: AnyDecoder, monkeypatch: pytest.MonkeyPatch, prefill_tokens: int
) -> None:
    usual = decode(decoder, prompts())
    for module in (paged, cohorts):
        monkeypatch.setattr(module, "PREFILL_TOKENS", prefill_tokens)
    assert_same(decode(decoder, prompts()), usual)


def test_rollouts_leave_as_they_end_and_not_at_the_end_of_the_wave(decoder: AnyDecoder) -> None:
    stream = generate(decoder, NoText(), request_of(prompts(), 4, SAMPLED), seed=1)
    lengths = [len(rollout.token_ids) for rollout in stream]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


@pytest.mark.parametrize("what", ["seed", "step", "position", "index"])
def test_seed_step_position_and_index_each_give_other_rollouts(decoder: AnyDecoder, what: str) -> None:
    prompt = prompts()[1]
    (usual, second) = decode(decoder, [prompt], 2)
    if what == "index":
        assert usual.token_ids != second.token_ids
    elif what == "position":
        moved = Prompt(prompt.id, prompt.text, prompt.token_ids, position=prompt.position + 1)
        assert decode(decoder, [moved], 1)[0].token_ids != usual.token_ids
    else:
        assert decode(decoder, [prompt], 1, **{what: 2})[0].token_ids != usual.token_ids


def test_the_place_in_the_batch_gives_no_other_rollout(decoder: AnyDecoder) -> None:
    prompt = prompts()[1]
    group_0 = decode(decoder, [prompt], 2)
    group_5 = decode(decoder, [*prompts(), prompt], 2)[-2:]
    assert tokens(group_0) == tokens(group_5)
    assert {rollout.group for rollout in group_5} == {5}


# The same as the full forward


def full_forward(reference: torch.nn.Module, prompt: Prompt, response: Sequence[int]) -> torch.Tensor:
    """Logits `[T, V]` before each token of the response, by running the whole sequence at once."""
    with torch.no_grad():
        logits = reference(torch.tensor([[*prompt.token_ids, *response]])).logits[0]
    return logits[len(prompt.token_ids) - 1 : -1]


def test_log_probs_are_those_of_the_policy_before_temperature_and_filters(
    decoder: AnyDecoder, reference: torch.nn.Module
) -> None:
    for rollout in decode(decoder, prompts()):
        logits = full_forward(reference, prompts()[rollout.group], rollout.token_ids)
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        assert rollout.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_sampled_tokens_follow_from_the_full_forward_and_the_seed(
    decoder: AnyDecoder, reference: torch.nn.Module
) -> None:
    """Penalty, least length, filters and random number applied token by token, without a cache."""
    for rollout in decode(decoder, prompts()):
        prompt = prompts()[rollout.group]
        logits = full_forward(reference, prompt, rollout.token_ids)
        for place, token in enumerate(rollout.token_ids):
            seen = torch.zeros(1, 96, dtype=torch.bool)
            seen[0, [*prompt.token_ids, *rollout.token_ids[:place]]] = True
            row = penalize(logits[place : place + 1], seen, SAMPLED.repetition_penalty)
            if place < SAMPLED.min_length:
                row[0, list(ENDS)] = -torch.inf
            uniform = torch.from_numpy(uniforms([rollout.seed], [place]))
            assert int(choose(row, SAMPLED, uniform)) == token


def test_the_end_token_ends_a_rollout_and_nothing_else_but_the_length_does(decoder: AnyDecoder) -> None:
    rollouts = decode(decoder, prompts(), 16)
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    assert min(len(rollout.token_ids) for rollout in rollouts) == SAMPLED.min_length + 1
    for rollout in rollouts:
        assert not {*ENDS} & {*rollout.token_ids[:-1]}
        assert len(rollout.token_ids) > SAMPLED.min_length
        if rollout.finish_reason == "stop":
            assert rollout.token_ids[-1] in ENDS
        else:
            assert len(rollout.token_ids) == SAMPLED.max_length


def test_bf16_decodes_on_a_cpu_close_to_single_precision(
    load: Load, folder: Path, reference: torch.nn.Module
) -> None:
    decoder = load(folder, torch.bfloat16)
    rollouts = list(generate(decoder, NoText(), request_of(prompts(), 4, SAMPLED), seed=1, policy_version=3))
    assert len(rollouts) == 20
    for rollout in rollouts:
        assert rollout.policy_version == 3
        logits = full_forward(reference, prompts()[rollout.group], rollout.token_ids)
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        error = (torch.tensor(rollout.log_probs) - expected).abs().mean()
        assert 0 < error < 0.1


# A real model


@pytest.fixture(scope="module")
def stories(load: Load, test_data: Path) -> tuple[AnyDecoder, Tokenizer]:
    folder = test_data / "stories260k"
    return load(folder), Tokenizer(folder)


def test_greedy_from_the_begin_token_gives_the_known_story(
    stories: tuple[AnyDecoder, Tokenizer], test_data: Path
) -> None:
    decoder, tokenizer = stories
    expected = (test_data / "stories260k" / "greedy_from_bos_256.txt").read_text()
    (rollout,) = generate(
        decoder,
        tokenizer,
        request_of([Prompt("bos", "", (1,))], 1, Controls(greedy=True, max_length=255)),  # `<s>` counts, too
        seed=1,
    )
    assert rollout.text == expected.rstrip("\n")


def test_an_end_string_ends_real_stories_behind_their_first_sentence(
    stories: tuple[AnyDecoder, Tokenizer],
) -> None:
    decoder, tokenizer = stories
    text = "Once upon a time, there was a little"
    prompt = Prompt("p", text, tuple(tokenizer.encode(text)))
    asked = request_of([prompt], 16, Controls(end_strings=(". ", "!"), max_length=80))
    rollouts = list(generate(decoder, tokenizer, asked, seed=1))
    stopped = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    assert len(stopped) > 8
    for rollout in stopped:
        said = tokenizer.continuation(prompt.token_ids, rollout.token_ids)
        before = tokenizer.continuation(prompt.token_ids, rollout.token_ids[:-1])
        assert said.startswith(rollout.text)
        assert said[len(rollout.text) :].startswith((". ", "!"))
        assert not any(end in text for end in (". ", "!") for text in (rollout.text, before))


def test_an_end_string_that_is_a_token_ends_rollouts_on_kernels_and_on_torch(decoder: AnyDecoder) -> None:
    class Named(NoText):
        """Writes one of the tokens that come as `<x>`."""

        def __init__(self, name: int) -> None:
            self.name = name

        def token(self, text: str) -> int | None:
            return self.name if text == "<x>" else None

        def continuation(self, prompt: Sequence[int], response: Sequence[int], *, raw: bool = False) -> str:
            return "".join("<x>" if i == self.name else f" {i}" for i in response)

    usual = decode(decoder, prompts())
    name = next(rollout.token_ids[4] for rollout in usual if len(rollout.token_ids) > 5)
    controls = Controls(**{**asdict(SAMPLED), "end_strings": ("<x>",)})
    ended = generate(decoder, Named(name), request_of(prompts(), 4, controls), seed=1)
    found = {(rollout.group, rollout.index): rollout for rollout in ended}
    for rollout in usual:
        # Its token is not banned before `min_length` only: where it came later, all before it is as it was.
        place = rollout.token_ids.index(name) if name in rollout.token_ids else None
        if place is not None and place >= SAMPLED.min_length:
            stopped = found[rollout.group, rollout.index]
            assert (stopped.token_ids, stopped.finish_reason) == (rollout.token_ids[: place + 1], "stop")
            assert "<x>" not in stopped.text
    assert any(rollout.token_ids[-1] == name for rollout in found.values())
