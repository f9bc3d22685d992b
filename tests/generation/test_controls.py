"""Each control means the same in every engine: what it does to a real model's tokens, held to plain torch.

Distributions of the first two tokens are compared with exact probabilities (Pearson's chi-squared test), and
each test also sees that they are not those without the control. Where a response ends is compared with what
the same seeds give without ends. vLLM is a real server; rows that end early change what is decoded beside
others there, by less than has changed a token here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.generation.decoder import Decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.rollout import Prompt, Rollout
from tests.drawing import request_of
from tests.generation.expected import Expected, fits
from tests.vllm_server import BARRED, STORIES

pytestmark = pytest.mark.timeout(300)
DRAWN = 2048
BEGINNING = "Once upon a time, there was a"
ENDS = BARRED[:2]  # "little" and "b", which come next in two of three stories: end tokens for some tests
LOG_PROB_BOUND = 1e-4  # nats between two implementations in float32


class Ending:
    """The model's tokenizer, but other tokens end a response."""

    def __init__(self, tokenizer: Tokenizer, eos_ids: tuple[int, ...]) -> None:
        self._tokenizer, self.eos_ids = tokenizer, eos_ids
        self.token, self.continuation = tokenizer.token, tokenizer.continuation


@pytest.fixture(scope="session")
def tokenizer(test_data: Path) -> Tokenizer:
    return Tokenizer(test_data / STORIES)


@pytest.fixture(scope="session")
def reference(test_data: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(test_data / STORIES)


@pytest.fixture(scope="module")
def decoder(decoder_of: Callable[..., Decoder]) -> Decoder:
    return decoder_of()


def prompts_of(tokenizer: Tokenizer, *texts: str) -> list[Prompt]:
    return [
        Prompt(str(place), text, tuple(tokenizer.encode(text)), position=place)
        for place, text in enumerate(texts)
    ]


def sample(
    decoder: Decoder, tokenizer: Any, prompts: Sequence[Prompt], num: int, controls: Controls, **how: Any
) -> list[Rollout]:
    """In (prompt, rollout) order."""
    request = replace(request_of(prompts, num, controls), **how)
    found = generate(decoder, tokenizer, request, seed=5)
    return sorted(found, key=lambda one: (one.group, one.index))


@pytest.fixture(scope="session")
def expected(reference: torch.nn.Module, tokenizer: Tokenizer) -> Expected:
    prompt = tuple(tokenizer.encode(BEGINNING))
    with torch.no_grad():
        first_V = reference(torch.tensor([prompt])).logits[0, -1].double()
        beginnings = torch.tensor([[*prompt, token] for token in range(len(first_V))])
        return Expected(prompt, first_V, reference(beginnings).logits[:, -1].double())


def drawn(decoder: Decoder, tokenizer: Any, expected: Expected, controls: Controls) -> list[Rollout]:
    prompts = [Prompt(str(place), "", expected.prompt, position=place) for place in range(16)]
    return sample(decoder, tokenizer, prompts, DRAWN // 16, replace(controls, max_length=2))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5},
        {"top_k": 3},
        {"top_p": 0.75},
        {"repetition_penalty": 0.5},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 0.8},
    ],
    ids=str,
)
def test_the_first_two_tokens_come_as_often_as_the_controls_say(
    decoder: Decoder, tokenizer: Tokenizer, expected: Expected, settings: dict[str, Any]
) -> None:
    found = drawn(decoder, tokenizer, expected, Controls(**settings))
    assert len(found) == DRAWN
    assert fits(found, expected.probs(Controls(**settings), tokenizer.eos_ids)) > 1e-3
    others = Controls(temperature=1.2) if not settings else Controls()
    probs = expected.probs(others, tokenizer.eos_ids).clamp(min=1e-12)
    assert fits(found, probs) < 1e-6


@pytest.mark.parametrize("min_length", [0, 1, 2])
def test_end_tokens_come_as_often_as_they_may(
    decoder: Decoder, tokenizer: Tokenizer, expected: Expected, min_length: int
) -> None:
    controls = Controls(min_length=min_length, max_length=2)
    found = drawn(decoder, Ending(tokenizer, ENDS), expected, controls)
    assert fits(found, expected.probs(controls, ENDS)) > 1e-3
    for one in found:
        assert one.finish_reason == ("stop" if one.token_ids[-1] in ENDS else "length")
        assert len(one.token_ids) > min_length or one.finish_reason == "length"


@pytest.fixture(scope="module")
def barring(decoder_of: Callable[..., Decoder]) -> Decoder:
    """By which `BARRED` do not come; the server is asked for that by their word."""
    allowed = torch.ones(512, dtype=torch.bool)
    allowed[list(BARRED)] = False
    return decoder_of(allowed)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3, "repetition_penalty": 0.5}], ids=str)
def test_ids_that_may_not_come_never_do_and_the_others_as_often_as_they_should(
    barring: Decoder, tokenizer: Tokenizer, expected: Expected, settings: dict[str, Any]
) -> None:
    found = drawn(barring, tokenizer, expected, Controls(**settings))
    probs = expected.probs(Controls(**settings), tokenizer.eos_ids, never=BARRED)
    assert fits(found, probs) > 1e-3


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is not asked to bar ids by their word, but told all others in each request."""
    monkeypatch.setattr("rs_aligner.generation.vllm.completing.word_of", lambda _: None)


@pytest.mark.slow
@pytest.mark.usefixtures("told")
def test_a_server_that_is_told_all_other_ids_bars_them_as_well(
    decoder_of: Callable[..., Decoder], tokenizer: Tokenizer, expected: Expected
) -> None:
    allowed = torch.ones(512, dtype=torch.bool)
    allowed[[*BARRED, 0]] = False
    found = drawn(decoder_of(allowed), tokenizer, expected, Controls())
    assert fits(found, expected.probs(Controls(), tokenizer.eos_ids, never=[*BARRED, 0])) > 1e-3


@torch.no_grad()
def test_greedy_rollouts_are_those_of_plain_torch_and_all_of_a_prompt_are_equal(
    decoder: Decoder, tokenizer: Tokenizer, reference: torch.nn.Module
) -> None:
    prompts = prompts_of(tokenizer, "", "Once upon a time", "The little dog", "Tim and Sue")
    controls = Controls(greedy=True, temperature=9.0, top_k=3, top_p=0.5, max_length=64)
    found = sample(decoder, tokenizer, prompts, 2, controls)
    assert [(one.group, one.index) for one in found] == [(group, i) for group in range(4) for i in (0, 1)]
    for prompt, one, same in zip(prompts, found[::2], found[1::2], strict=True):
        assert (same.token_ids, same.text, same.log_probs) == (one.token_ids, one.text, one.log_probs)
        logits = reference(torch.tensor([[*prompt.token_ids, *one.token_ids]])).logits[0]
        assert one.token_ids == tuple(logits[len(prompt.token_ids) - 1 : -1].argmax(-1).tolist())
        assert len(one.token_ids) == 64 or one.token_ids[-1] in tokenizer.eos_ids


@torch.no_grad()
def test_log_probabilities_are_those_before_penalty_temperature_and_filters(
    barring: Decoder, tokenizer: Tokenizer, reference: torch.nn.Module
) -> None:
    controls = Controls(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=1.3, max_length=24)
    prompts = prompts_of(tokenizer, BEGINNING, "Tim")
    for one in sample(barring, tokenizer, prompts, 4, controls):
        ids = [*prompts[one.group].token_ids, *one.token_ids]
        logits = reference(torch.tensor([ids])).logits[0, -len(one.token_ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(one.token_ids)[:, None])[:, 0]
        assert one.log_probs == pytest.approx(expected.tolist(), abs=LOG_PROB_BOUND)


# Where a response ends


def ended(
    tokenizer: Tokenizer, prompt: Prompt, tokens: Sequence[int], ends: Sequence[str], least: int
) -> tuple[tuple[int, ...], str]:
    """A response that did not end, cut at the first end, by reading its text again with each token."""
    for length in range(max(least, 1), len(tokens) + 1):
        before, text = (
            tokenizer.continuation(prompt.token_ids, tokens[:n], raw=True) for n in (length - 1, length)
        )
        if any(text.find(end, max(0, len(before) - len(end) + 1)) >= 0 for end in ends):
            return tuple(tokens[:length]), "stop"
    return tuple(tokens), "length"


@pytest.mark.parametrize("min_length", [1, 9])
@pytest.mark.parametrize("ends", [(".", "!"), ("ed to", ", a", " Lily"), (" Once",)], ids=str)
def test_end_strings_end_a_response_where_they_are_complete(
    decoder: Decoder, tokenizer: Tokenizer, ends: tuple[str, ...], min_length: int
) -> None:
    prompts = prompts_of(tokenizer, "", BEGINNING, "Lily")
    controls = Controls(max_length=40, min_length=min_length)
    never = Ending(tokenizer, ())
    found = sample(decoder, never, prompts, 6, replace(controls, end_strings=ends))
    through = sample(decoder, never, prompts, 6, controls)
    for one, whole in zip(found, through, strict=True):
        prompt = prompts[one.group]
        tokens, reason = ended(tokenizer, prompt, whole.token_ids, ends, min_length)
        assert (one.token_ids, one.finish_reason) == (tokens, reason)
        assert one.log_probs == pytest.approx(whole.log_probs[: len(tokens)], abs=LOG_PROB_BOUND)
        text = tokenizer.continuation(prompt.token_ids, tokens)
        assert text.startswith(one.text)
        assert len(one.text) < len(text) if reason == "stop" else one.text == text
    assert any(one.finish_reason == "stop" for one in found) or ends == (" Once",)


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("min_length", [0, 3])
def test_a_special_token_among_the_end_strings_ends_a_response_by_its_id(
    decoder_of: Callable[..., Decoder], tokenizer: Tokenizer, min_length: int
) -> None:
    """`</s>` is one that the model never says; here it may say little else."""
    mark = tokenizer.token("</s>")
    assert mark == 2
    allowed = torch.zeros(512, dtype=torch.bool)
    allowed[[mark, *range(5, 12)]] = True
    controls = Controls(max_length=16, min_length=min_length, temperature=2.0, end_strings=("</s>",))
    found = sample(decoder_of(allowed), tokenizer, prompts_of(tokenizer, BEGINNING), 64, controls)
    stopped = [one for one in found if one.finish_reason == "stop"]
    assert len(stopped) > 4
    for one in found:
        assert mark not in one.token_ids[:-1]
        assert (one.token_ids[-1] == mark) == (one.finish_reason == "stop")
        assert len(one.token_ids) > (min_length if one in stopped else 15)
        assert "</s>" not in one.text


def test_most_tokens_end_a_response_of_each_row_its_own(decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompts = prompts_of(tokenizer, BEGINNING, "Tim")
    request = request_of(prompts, 3, Controls(max_length=12, min_length=4))
    limits = {(0, 1): 3, (1, 0): 1, (1, 2): 99}
    found = list(generate(decoder, tokenizer, request, seed=5, limits=limits))
    whole = {(one.group, one.index): one for one in generate(decoder, tokenizer, request, seed=5)}
    assert len(found) == len(whole) == 6
    for one in found:
        key = (one.group, one.index)
        most = min(limits.get(key, 12), 12)
        assert (len(one.token_ids), one.finish_reason) == (most, "length")
        assert one.token_ids == whole[key].token_ids[:most]
        assert one.seed == whole[key].seed


# Seeds


def tokens_of(rollouts: Sequence[Rollout]) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(one.group, one.index): one.token_ids for one in rollouts}


def test_seeds_repeat_rollouts_and_a_part_asked_alone_draws_the_same(
    decoder: Decoder, tokenizer: Tokenizer
) -> None:
    controls = Controls(max_length=16, temperature=1.5)
    prompts = prompts_of(tokenizer, BEGINNING, "Tim", BEGINNING)
    whole = sample(decoder, tokenizer, prompts, 6, controls)
    assert len(set(tokens_of(whole).values())) == 18
    assert len({one.seed for one in whole}) == 18
    assert all(0 <= one.seed < 2**63 for one in whole)
    assert tokens_of(sample(decoder, tokenizer, prompts, 6, controls)) == tokens_of(whole)
    fewer = tokens_of(sample(decoder, tokenizer, prompts, 2, controls))
    assert fewer.items() <= tokens_of(whole).items()
    known = {(one.group, one.index): (one.seed, 0) for one in whole if (one.group + one.index) % 3}
    rest = sample(decoder, tokenizer, prompts, 6, controls, known=known)
    assert {(one.group, one.index) for one in rest} == set(tokens_of(whole)) - set(known)
    assert tokens_of(rest).items() <= tokens_of(whole).items()


def test_step_position_and_first_index_each_give_other_rollouts(
    decoder: Decoder, tokenizer: Tokenizer
) -> None:
    controls = Controls(max_length=16, temperature=1.5)
    prompts = prompts_of(tokenizer, BEGINNING)
    moved = [replace(prompts[0], position=7)]
    found = [
        *sample(decoder, tokenizer, prompts, 2, controls),
        *sample(decoder, tokenizer, moved, 2, controls),
        *sample(decoder, tokenizer, prompts, 2, controls, step=9),
        *sample(decoder, tokenizer, prompts, 2, controls, first_index=2),
    ]
    assert len({one.token_ids for one in found}) == len({one.seed for one in found}) == 8
