"""What the stand-in does without faults is what a real vLLM does: each test runs against both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rs_aligner.address import Address
from rs_aligner.generation.vllm.completion import Choice, Choices
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.order import COMPLETIONS
from rs_aligner.remote.errors import TransportError
from tests.generation.vllm.stand_in import stand_in

pytestmark = pytest.mark.timeout(300)
VOCAB = 512  # of the model that the real one serves

Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["stand-in", pytest.param("vllm", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "vllm":
        yield request.getfixturevalue("stories_server").url
    else:
        with stand_in(VOCAB) as server:
            yield server.url


@pytest.fixture
def ask(url: str) -> Ask:
    """Asks a server, for its events; a body that is not whole is filled up as the decoder's are."""

    def ask(**other: Any) -> list[dict[str, Any]]:
        usual = {"model": "policy", "prompt": [1, 403], "n": 3, "max_tokens": 5, "min_tokens": 0}
        usual |= {"temperature": 1.0, "seed": 11, "logprobs": 0, "return_token_ids": True}
        usual |= {"ignore_eos": True, "stop_token_ids": [], "stream": True, "stream_interval": 512}
        with VllmConnection(Address.parse(url)).stream(COMPLETIONS, 60, usual | other) as events:
            return list(events)

    return ask


def choices(events: list[dict[str, Any]], count: int = 3, most: int = 5) -> list[Choice]:
    found = Choices(count, most)
    for event in events:
        found.take(event)
    return found.finish()


def tokens(events: list[dict[str, Any]], count: int = 3, most: int = 5) -> list[list[int]]:
    return [choice.tokens for choice in choices(events, count, most)]


def test_it_is_healthy_and_names_its_model(url: str) -> None:
    link = VllmConnection(Address.parse(url))
    health = link.exchange("GET", "/health", 30)
    assert (health.status, health.body) == (200, b"")
    [model] = [one for one in link.get("/v1/models", 30)["data"] if one["parent"] is None]
    assert (model["id"], model["max_model_len"]) == ("policy", 512)
    assert link.exchange("GET", "/no/such/route", 30).status == 404


def test_each_event_has_what_came_of_a_choice_with_token_ids_and_log_probabilities(ask: Ask) -> None:
    events = ask()
    assert {event["object"] for event in events} == {"text_completion"}
    parts = [part for event in events for part in event["choices"]]
    for part in parts:
        assert len(part["token_ids"]) == len(part["logprobs"]["token_logprobs"])
        assert all(isinstance(one, int) and 0 <= one < VOCAB for one in part["token_ids"])
        assert all(one < 0 for one in part["logprobs"]["token_logprobs"])
    for index in range(3):
        first, rest = [part for part in parts if part["index"] == index]
        assert (first["finish_reason"], len(first["token_ids"])) == (None, 1)
        assert (rest["finish_reason"], rest["stop_reason"], len(rest["token_ids"])) == ("length", None, 4)


def test_a_choice_comes_in_as_many_events_as_the_interval_says(ask: Ask) -> None:
    """The first token at once; and a choice of one token in one event."""

    def sizes(**other: Any) -> list[int]:
        return [len(part["token_ids"]) for event in ask(n=1, **other) for part in event["choices"]]

    assert sizes(max_tokens=1) == [1]
    assert sizes(max_tokens=2) == [1, 1]
    assert sizes(max_tokens=9) == [1, 8]


def test_a_choice_that_ends_early_is_there_before_the_others(ask: Ask) -> None:
    through = tokens(ask(temperature=2.0))
    first, *_ = [one for one in through[1] if one not in through[0] + through[2]]
    ended = [
        part["index"]
        for event in ask(temperature=2.0, stop_token_ids=[first])
        for part in event["choices"]
        if part["finish_reason"] is not None
    ]
    assert ended[0] == 1 or through[1].index(first) == 4
    assert sorted(ended) == [0, 1, 2]


def test_a_choice_draws_from_the_seed_of_the_first_and_its_number(ask: Ask) -> None:
    whole = tokens(ask(temperature=2.0))
    assert tokens(ask(temperature=2.0)) == whole
    assert [tokens(ask(temperature=2.0, n=1, seed=11 + i), 1)[0] for i in range(3)] == whole
    assert tokens(ask(temperature=2.0, n=2, seed=12), 2) == whole[1:]
    largest = tokens(ask(temperature=2.0, seed=2**62 + 2**40))
    assert len({tuple(one) for one in largest}) == 3


def test_a_stop_token_ends_a_choice_and_is_its_last_token(ask: Ask) -> None:
    [plain] = tokens(ask(n=1), 1)
    end = plain[2]
    events = ask(n=1, stop_token_ids=[end])
    assert tokens(events, 1) == [plain[: plain.index(end) + 1]]
    [choice] = events[-1]["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", end)
    [later] = tokens(ask(n=1, stop_token_ids=[end], min_tokens=4), 1)
    assert end not in later[:4]


def test_only_ids_that_are_allowed_come_and_their_log_probability_stays(ask: Ask) -> None:
    for choice in choices(ask(allowed_token_ids=[7])):
        assert choice.tokens == [7] * 5
        assert max(choice.log_probs) < -0.5


def test_greedy_gives_one_choice_that_no_seed_changes(ask: Ask) -> None:
    one, other = (tokens(ask(n=1, temperature=0.0, seed=seed), 1) for seed in (1, 2))
    assert one == other


def test_a_response_that_does_not_fit_is_cut_without_a_word(ask: Ask) -> None:
    """So the decoder asks for none, and takes one for a bad answer."""
    [choice] = choices(ask(n=1, max_tokens=511), 1, 511)
    assert (len(choice.tokens), choice.reason) == (510, "length")


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"temperature": 0.0}, 400),  # with n = 3
        ({"temperature": 2.1}, 400),
        ({"allowed_token_ids": [VOCAB]}, 400),
        ({"logit_bias": {str(VOCAB): 0.0}}, 400),
        ({"stop_token_ids": [VOCAB]}, 400),
        ({"prompt": [1, VOCAB]}, 400),
        ({"max_tokens": 513}, 400),
        ({"min_tokens": 6}, 400),
        ({"model": "another"}, 404),
    ],
    ids=str,
)
def test_what_is_refused_is_said_in_words(ask: Ask, wrong: dict[str, Any], status: int) -> None:
    with pytest.raises(TransportError) as refused:
        ask(**wrong)
    assert (refused.value.kind, refused.value.status) == ("refused", status)
    message = str(refused.value).removeprefix(f"the server answers HTTP {status}: ")
    assert len(message) > 10
    assert "{" not in message
    assert tokens(ask())  # it answers all the same


def test_the_last_id_of_the_vocabulary_is_no_other_vocabulary(ask: Ask) -> None:
    last = VOCAB - 1
    assert tokens(ask(n=1, allowed_token_ids=[last], logit_bias={str(last): 0.0}), 1) == [[last] * 5]
