"""What the stand-in does without faults is what a real vLLM does: each test runs against both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rs_aligner.address import Address
from rs_aligner.generation.vllm.completion import read_choices
from rs_aligner.remote.transport import Conversation, HTTPAnswer, message_of
from tests.generation.vllm.stand_in import stand_in

pytestmark = pytest.mark.timeout(300)
VOCAB = 512  # of the model that the real one serves

Ask = Callable[..., HTTPAnswer]


@pytest.fixture(scope="module", params=["stand-in", pytest.param("vllm", marks=pytest.mark.slow)])
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """Asks a server; a body that is not whole is filled up as the decoder's are."""

    def asks(url: str) -> Ask:
        def ask(path: str = "/v1/completions", **other: Any) -> HTTPAnswer:
            link = Conversation(Address.parse(url), {"Content-Type": "application/json"})
            if path != "/v1/completions":
                return link.exchange("GET", path, 30)
            usual = {"model": "policy", "prompt": [1, 403], "n": 3, "max_tokens": 5, "min_tokens": 0}
            usual |= {"temperature": 1.0, "seed": 11, "logprobs": 0, "return_token_ids": True}
            usual |= {"ignore_eos": True, "stop_token_ids": []}
            return link.exchange("POST", path, 60, json.dumps(usual | other).encode())

        return ask

    if request.param == "vllm":
        yield asks(request.getfixturevalue("stories_server").url)
    else:
        with stand_in(VOCAB) as server:
            yield asks(server.url)


def tokens(answer: HTTPAnswer, count: int = 3, most: int = 5) -> list[list[int]]:
    assert answer.status == 200, answer.body
    return [choice.tokens for choice in read_choices(json.loads(answer.body), count, most)]


def test_it_is_healthy_and_names_its_model(ask: Ask) -> None:
    health = ask("/health")
    assert (health.status, health.body) == (200, b"")
    models = json.loads(ask("/v1/models").body)["data"]
    [model] = [one for one in models if one["parent"] is None]
    assert (model["id"], model["max_model_len"]) == ("policy", 512)
    assert ask("/no/such/route").status == 404


def test_choices_have_token_ids_log_probabilities_and_a_reason(ask: Ask) -> None:
    found = json.loads(ask().body)
    assert found["object"] == "text_completion"
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    for choice in found["choices"]:
        assert len(choice["token_ids"]) == len(choice["logprobs"]["token_logprobs"]) == 5
        assert all(isinstance(one, int) and 0 <= one < VOCAB for one in choice["token_ids"])
        assert all(one < 0 for one in choice["logprobs"]["token_logprobs"])
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)


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
    answer = ask(n=1, stop_token_ids=[end])
    assert tokens(answer, 1) == [plain[: plain.index(end) + 1]]
    [choice] = json.loads(answer.body)["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", end)
    [later] = tokens(ask(n=1, stop_token_ids=[end], min_tokens=4), 1)
    assert end not in later[:4]


def test_only_ids_that_are_allowed_come_and_their_log_probability_stays(ask: Ask) -> None:
    for choice in read_choices(json.loads(ask(allowed_token_ids=[7]).body), 3, 5):
        assert choice.tokens == [7] * 5
        assert max(choice.log_probs) < -0.5


def test_greedy_gives_one_choice_that_no_seed_changes(ask: Ask) -> None:
    one, other = (tokens(ask(n=1, temperature=0.0, seed=seed), 1) for seed in (1, 2))
    assert one == other


def test_a_response_that_does_not_fit_is_cut_without_a_word(ask: Ask) -> None:
    """So the decoder asks for none, and takes one for a bad answer."""
    [choice] = read_choices(json.loads(ask(n=1, max_tokens=511).body), 1, 511)
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
    answer = ask(**wrong)
    assert answer.status == status
    message = message_of(answer)
    assert len(message) > 10
    assert "{" not in message
    assert tokens(ask())  # it answers all the same


def test_the_last_id_of_the_vocabulary_is_no_other_vocabulary(ask: Ask) -> None:
    last = VOCAB - 1
    assert tokens(ask(n=1, allowed_token_ids=[last], logit_bias={str(last): 0.0}), 1) == [[last] * 5]
