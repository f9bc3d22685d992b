"""Servers are asked for rollouts, and each comes once and right, whatever becomes of servers meanwhile.

The servers are stand-ins (`stand_in.py`), held to a real one in `test_contract.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.rollout import Prompt, Rollout, Score
from rs_aligner.sample_request import SampleRequest, SamplingFailed
from rs_aligner.trainers.round import Judges, sample_and_score
from tests.drawing import request_of
from tests.fake_run import FakeJudge
from tests.generation.vllm.asked import (
    CONTROLS,
    Rank,
    Texts,
    alone,
    assert_whole,
    decoder_for,
    pair,
    prompts_of,
    sample,
)
from tests.generation.vllm.faults import FAULTS, STREAM_FAULTS, late, of_events
from tests.generation.vllm.stand_in import stand_in
from tests.ports import free_port

pytestmark = pytest.mark.timeout(120)


# Faults


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_no_rollout_is_lost_or_doubled_where_a_server_fails_now_and_then(
    opened: ExitStack, fault: str
) -> None:
    first, second, decoder = pair(opened, request_timeout=0.5 if fault == "a frozen server" else 20)
    first.faults = [FAULTS[fault]]
    second.faults = [late]
    assert_whole(sample(decoder))
    assert not first.faults
    assert len(first.asked) + len(second.asked) == 7  # what went wrong, again, and nothing else


@pytest.mark.parametrize("fault", STREAM_FAULTS, ids=str)
def test_what_ended_before_an_answer_broke_off_stays_and_the_rest_alone_is_asked_for(
    opened: ExitStack, fault: str
) -> None:
    first, second, decoder = pair(opened, request_timeout=0.5 if fault == "frozen in the middle" else 20)
    first.faults = [STREAM_FAULTS[fault]]
    second.faults = [late]
    assert_whole(sample(decoder))
    assert not first.faults
    asked = [(one["seed"], one["n"]) for one in (*first.asked, *second.asked)]
    whole = [(seed, 3) for seed, number in asked if number == 3]
    [(seed, number)] = [one for one in asked if one not in whole]
    assert len(whole) == 6
    assert number == 2
    assert (seed - 1, 3) in whole


def test_what_is_missing_in_between_is_asked_for_in_as_few_requests_as_there_are_gaps(
    opened: ExitStack,
) -> None:
    server, decoder = alone(opened, max_in_flight=8)
    server.faults = [of_events(lambda events: [*events[:3], events[4], None])]  # the middle one ended
    assert_whole(sample(decoder, 1), 1)
    seed = server.asked[0]["seed"]
    assert sorted((one["n"], one["seed"]) for one in server.asked) == [(1, seed), (1, seed + 2), (3, seed)]


@pytest.mark.parametrize("behind", [[None], [], [b"data: {"], [{"error": {"message": "no"}}]], ids=str)
def test_nothing_is_asked_for_again_where_an_answer_breaks_off_behind_the_last_rollout(
    opened: ExitStack, behind: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The server is left out all the same, where it goes on like that."""
    server, decoder = alone(opened)
    server.faults = [of_events(lambda events: [*events[:-1], *behind]), ...]
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        assert_whole(sample(decoder, 12), 12)
    assert [one["n"] for one in server.asked] == [3] * 12
    assert f"the vLLM server at {server.url} is left out until it samples again" in caplog.text


def test_a_rollout_is_handed_on_while_others_of_its_request_are_sampled(opened: ExitStack) -> None:
    server, decoder = alone(opened)
    scored, order = threading.Event(), list[str]()
    server.faults = [of_events(lambda events: [*events[:4], scored, *events[4:]])]

    class Scorer(FakeJudge):
        def submit(self, prompt: Prompt, rollout: Rollout) -> Any:
            order.append(f"{rollout.index} of {len(server.asked)}")
            scored.set()
            return super().submit(prompt, rollout)

    class Policy:
        weights_seconds = 0.0

        def generate(self, request: SampleRequest) -> Iterator[Rollout]:
            return generate(decoder, Texts(), request, seed=4)

        def gather(self, share: Any) -> list[Any]:
            return [share]

    request = request_of(prompts_of(1), 3, CONTROLS)
    judges = Judges(Scorer(lambda prompt, rollout: Score(0.0), [], 0.0))
    found = sample_and_score(Policy(), request, judges, what="step 1")  # type: ignore[arg-type]  # enough of one
    assert_whole(found.groups[0].rollouts, 1)
    assert order == ["0 of 1", "1 of 1", "2 of 1"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("an error of its own", "HTTP 500: EngineCore has an issue"),
        ("fewer choices", "the answer has 2 choices ([0, 1]), asked for were 3"),
        ("more choices", "a response has 9 tokens, where 8 were asked for"),
        ("ids of another vocabulary", "token 1 of a response is 1000000, which may not come there"),
        ("NaN", "nan is no log-probability"),
        ("fewer tokens", "a response ended by 'length' after 1 of 8 tokens"),
        ("garbage", "the answer ends before its last event"),
        ("no JSON in the middle", "the answer is no JSON"),
        ("a choice that goes on after its end", "choice 0 goes on after it has ended"),
        ("an error in the middle", "HTTP 500: EngineCore has an issue"),
        ("no stream", "the answer is no stream of events"),
    ],
)
def test_a_server_that_always_fails_is_left_out_and_the_log_says_why(
    opened: ExitStack, fault: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, decoder = pair(opened, max_in_flight=1)
    first.faults = [{**FAULTS, **STREAM_FAULTS}[fault], ...]
    second.faults = [late, ...]
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        assert_whole(sample(decoder, 12), 12)
    told = f"the vLLM server at {first.url} is left out until it samples again: "
    assert told in caplog.text
    assert why in caplog.text


def test_a_server_that_dies_in_mid_step_is_taken_back_in(
    opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    second = opened.enter_context(stand_in())
    with stand_in(port=port) as first:
        decoder = decoder_for(first, second)
        opened.callback(decoder.close)
        first.faults = [FAULTS["a frozen server"], ...]
        second.gate.clear()
        found: list[Rollout] = []
        asking = threading.Thread(target=lambda: found.extend(sample(decoder)))
        asking.start()
        while not first.asked:
            asking.join(0.01)
        first.faults = [FAULTS["a cut connection"], ...]
    second.gate.set()
    asking.join(60)
    assert_whole(found)
    with caplog.at_level(logging.INFO, "rs_aligner"), stand_in(port=port) as again:
        waited = threading.Event()
        while f"the vLLM server at {again.url} samples again" not in caplog.text:
            assert not waited.wait(0.05)
        second.faults = [late, ...]
        assert_whole(sample(decoder))
        assert again.asked


def test_the_run_ends_with_the_reason_where_nobody_answers(opened: ExitStack) -> None:
    server, decoder = alone(opened, give_up_after=0.3)
    server.is_sick, server.faults = True, [FAULTS["an error of its own"], ...]
    with pytest.raises(SamplingFailed, match=f"in vain: .*{server.url}: the server answers HTTP 500"):
        sample(decoder)


def test_what_is_wrong_with_a_request_is_told_at_once_and_costs_no_server(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, decoder = pair(opened)
    with pytest.raises(ValueError, match=r"prompt '0' has 2 tokens, .* 511, more than the 512 that vLLM"):
        sample(decoder, controls=Controls(max_length=511))
    with pytest.raises(ValueError, match=r"temperature is 2.5: vLLM takes 0.01 to 2"):
        sample(decoder, controls=Controls(temperature=2.5))
    assert_whole(sample(decoder))


# What is asked


def test_prompts_under_way_are_as_many_as_a_wave_has(opened: ExitStack) -> None:
    server, decoder = alone(opened)
    server.faults = [late, ...]
    assert_whole(sample(decoder, 12, wave_size=3), 12)
    assert server.most_at_once == 3
    assert len(server.asked) == 12


def test_servers_share_the_prompts_and_none_gets_more_than_it_may_have(opened: ExitStack) -> None:
    first, second, decoder = pair(opened, max_in_flight=2)
    first.faults, second.faults = [late, ...], [late, ...]
    assert_whole(sample(decoder, 12), 12)
    assert first.most_at_once == second.most_at_once == 2
    assert len(first.asked) + len(second.asked) == 12


def test_a_prompts_rollouts_are_one_request_and_what_is_missing_is_as_few_as_its_gaps(
    opened: ExitStack,
) -> None:
    server, decoder = alone(opened)
    whole = sample(decoder, 2)
    assert sorted((one["n"], one["prompt"]) for one in server.asked) == [(3, [7, 1]), (3, [7, 2])]
    assert {(one["stream"], one["stream_interval"]) for one in server.asked} == {(True, 8)}  # two events each
    server.asked.clear()
    known = {(one.group, one.index): (one.seed, 0) for one in whole if (one.group, one.index) != (0, 1)}
    del known[1, 1], known[1, 2]
    rest = sample(decoder, 2, known=known)
    assert rest == [one for one in whole if (one.group, one.index) not in known]
    assert sorted((one["prompt"][1], one["n"], one["seed"]) for one in server.asked) == [
        (1, 1, whole[1].seed),
        (2, 2, whole[4].seed),
    ]


def test_greedy_rollouts_are_asked_for_once_a_prompt(opened: ExitStack) -> None:
    server, decoder = alone(opened)
    found = sample(decoder, 2, replace(CONTROLS, greedy=True))
    assert [one["n"] for one in server.asked] == [1, 1]
    assert len(found) == 6
    assert len({one.token_ids for one in found}) == 1


def test_an_end_string_that_only_vllm_sees_costs_a_second_request(opened: ExitStack) -> None:
    """It ends a response in a text of its own making; ours decides, and the same tokens go on."""
    server, decoder = alone(opened)

    def stopped(answer: Any, _: Any) -> Any:
        for choice in answer[1]["choices"][1:]:
            choice["token_ids"] = choice["token_ids"][:2]
            choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:2]
            choice["finish_reason"], choice["stop_reason"] = "stop", "END"
        return answer

    server.faults = [stopped]
    assert_whole(sample(decoder, 1, replace(CONTROLS, end_strings=("END",))), 1)
    assert [one["n"] for one in server.asked] == [3, 2]  # the first one came through
    assert ["stop" in one for one in server.asked] == [True, False]


def test_what_a_server_says_behind_the_end_is_left_out(opened: ExitStack) -> None:
    """Here it looks for no end string at all."""
    _, decoder = alone(opened)
    (plain, *_) = sample(decoder, 1)
    end = f";{plain.token_ids[3]};"
    (cut, *_) = sample(decoder, 1, replace(CONTROLS, end_strings=(end,)))
    assert (cut.token_ids, cut.finish_reason) == (plain.token_ids[:4], "stop")
    assert cut.log_probs == plain.log_probs[:4]


def test_a_stop_ends_the_wave_at_once_and_servers_are_let_go(opened: ExitStack) -> None:
    first, second, decoder = pair(opened)
    first.gate.clear()
    second.gate.clear()
    asked = iter([False, False, True, True])
    request = request_of(prompts_of(6), 3, CONTROLS)
    assert not list(generate(decoder, Texts(), request, seed=4, stops=lambda: next(asked)))
    first.gate.set()
    second.gate.set()
    assert_whole(sample(decoder))


@pytest.mark.parametrize("ends", ["at its end", "by a stop", "by a failure"])
def test_ranks_that_do_not_ask_keep_in_step_with_the_one_that_does(opened: ExitStack, ends: str) -> None:
    """A collective that one of them does not join would hold the others for ever."""
    server = opened.enter_context(stand_in())
    barrier = threading.Barrier(2, timeout=30)
    flags: dict[bool, bool] = {}

    class OfTwo(Rank):
        def any_of_replica(self, flag: bool) -> bool:
            self.votes.append(flag)
            flags[self.is_source] = flag
            barrier.wait()
            found = any(flags.values())
            barrier.wait()
            return found

    ranks = OfTwo(), OfTwo(is_source=False)
    decoders = [decoder_for(server, rank=rank, give_up_after=0.2) for rank in ranks]
    for decoder in decoders:
        opened.callback(decoder.close)
    server.faults = [late, ...]
    if ends == "by a failure":
        server.is_sick, server.faults = True, [FAULTS["an error of its own"], ...]
    found: dict[int, Any] = {}

    def run(place: int) -> None:
        stops = (lambda: len(ranks[place].votes) > 1) if ends == "by a stop" else lambda: False
        request = request_of(prompts_of(6), 3, CONTROLS, wave_size=2)
        try:
            found[place] = list(generate(decoders[place], Texts(), request, seed=4, stops=stops))
        except SamplingFailed as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ranks[0].votes) == len(ranks[1].votes) > 0
    assert found[1] == []
    if ends == "by a failure":
        assert isinstance(found[0], SamplingFailed)
    else:
        assert (len(found[0]) == 18) == (ends == "at its end")
    assert len(server.asked) <= 7
