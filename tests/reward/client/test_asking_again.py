"""Who is asked next, what is asked again, and when a row is given up, against stand-ins for servers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import EndpointConfig, JudgeConfig, RemoteRMConfig
from rs_aligner.remote.endpoint import Endpoint
from rs_aligner.remote.endpoints import EndpointPool
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.queue import RowQueue, Waiting
from rs_aligner.remote.retry import LONGEST_DELAY, Patience, jittered
from rs_aligner.remote.token import read_token
from rs_aligner.reward.client import JudgeUnreachable, RemoteGPTRMClient
from rs_aligner.reward.protocol import JUDGE_TOKEN
from rs_aligner.rollout import Score, ScoreFailure
from tests.ports import free_port
from tests.reward.fake_judge import Answer, fake_judge, rewards
from tests.reward.rows import row

pytestmark = pytest.mark.timeout(60)


def config(*ports: int, **settings: Any) -> RemoteRMConfig:
    servers = tuple(EndpointConfig(ip="127.0.0.1", port=port) for port in ports)
    return RemoteRMConfig(endpoints=servers, **{"max_wait_seconds": 0.01, **settings})


def ones(num_rows: int) -> Answer:
    return rewards([1.0] * num_rows)


def twos(num_rows: int) -> Answer:
    return rewards([2.0] * num_rows)


def error(status: int) -> Answer:
    return status, {"error": "out of order"}


def results(client: RemoteGPTRMClient, count: int) -> list[Score | ScoreFailure]:
    futures: list[Future[Score | ScoreFailure]] = [client.submit(*row()) for _ in range(count)]
    client.flush()
    return [future.result(timeout=30) for future in futures]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("judge-")] == []


@pytest.mark.parametrize(
    "broken", [error(500), error(503), error(429), rewards([1.0] * 9), (200, {"outs": 1})]
)
def test_what_may_pass_by_itself_is_asked_again(broken: Answer) -> None:
    answers = [broken, broken]
    with (
        fake_judge(lambda n: answers.pop() if answers else ones(n)) as judge,
        RemoteGPTRMClient(
            config(judge.port, on_failure="drop", max_attempts=3, max_wait_seconds=5)
        ) as client,
    ):
        assert results(client, 2) == [Score(1.0)] * 2
    assert judge.batches == [2, 2, 2]


@pytest.mark.parametrize("status", [400, 403])
def test_what_the_server_refuses_is_not_asked_again(status: int) -> None:
    with (
        fake_judge(lambda n: error(status)) as judge,
        RemoteGPTRMClient(config(judge.port, on_failure="retry")) as client,
    ):
        (result,) = results(client, 1)
    assert judge.batches == [1]
    assert isinstance(result, ScoreFailure)
    key = "remote_rm.token_file" if status == 403 else "remote_rm.mode"
    assert key in result.reason
    assert f"127.0.0.1:{judge.port}" in result.reason


def test_a_batch_that_the_server_refuses_is_halved_so_that_no_row_costs_the_others_their_scores() -> None:
    with (
        fake_judge(lambda n: error(400) if n > 2 else ones(n)) as judge,
        RemoteGPTRMClient(config(judge.port, max_batch_size=8, max_wait_seconds=5)) as client,
    ):
        assert results(client, 8) == [Score(1.0)] * 8
    assert judge.batches == [8, 4, 2, 2, 4, 2, 2]


def test_a_row_that_takes_for_ever_does_not_cost_the_others_their_scores() -> None:
    """The stand-in sees numbers of rows only: batches of more than two hang."""

    def answer(num_rows: int) -> Answer:
        time.sleep(1.5 if num_rows > 2 else 0)
        return ones(num_rows)

    with (
        fake_judge(answer) as judge,
        RemoteGPTRMClient(
            config(judge.port, max_batch_size=8, max_wait_seconds=5, request_timeout=0.5, on_failure="drop")
        ) as client,
    ):
        assert results(client, 8) == [Score(1.0)] * 8


def test_closing_in_mid_request_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def held(num_rows: int) -> Answer:
        gate.wait(20)
        return ones(num_rows)

    with caplog.at_level(logging.WARNING, "rs_aligner"), fake_judge(held) as judge:
        with RemoteGPTRMClient(config(judge.port)) as client:
            client.submit(*row())
            while not judge.batches:
                time.sleep(0.01)
        gate.set()
    assert caplog.text == ""


def test_a_batch_with_a_wrong_number_of_answers_is_never_halved_into_fitting_it() -> None:
    with (
        fake_judge(lambda n: rewards([1.0, 2.0])) as judge,
        RemoteGPTRMClient(
            config(judge.port, on_failure="drop", max_attempts=2, max_batch_size=4, max_wait_seconds=5)
        ) as client,
    ):
        found = results(client, 4)
    assert all(isinstance(result, ScoreFailure) for result in found)


@pytest.mark.parametrize("on_failure", ["drop", "abort"])
def test_a_server_that_always_fails_is_asked_max_attempts_times(on_failure: str) -> None:
    with (
        fake_judge(lambda n: error(500)) as judge,
        RemoteGPTRMClient(config(judge.port, on_failure=on_failure, max_attempts=2)) as client,
    ):
        (result,) = results(client, 1)
    assert judge.batches == [1, 1]
    assert isinstance(result, ScoreFailure)
    assert "HTTP 500: out of order" in result.reason


def test_with_retry_a_row_is_given_up_after_give_up_after_seconds() -> None:
    with fake_judge(ones) as judge:
        client = RemoteGPTRMClient(config(judge.port, on_failure="retry", give_up_after=1.5))
        client.wait_until_ready()
    with client:
        began = time.monotonic()
        found = results(client, 300)
        seconds = time.monotonic() - began
    assert all(isinstance(result, ScoreFailure) for result in found)
    assert 1.5 <= seconds < 4, "the whole queue is given up together, not batch after batch"


def test_another_server_is_asked_first_and_at_once() -> None:
    with (
        fake_judge(lambda n: error(500)) as broken,
        fake_judge(ones) as good,
        RemoteGPTRMClient(
            config(broken.port, good.port, on_failure="drop", max_batch_size=1, max_in_flight=1)
        ) as client,
    ):
        began = time.monotonic()
        assert results(client, 20) == [Score(1.0)] * 20
        assert time.monotonic() - began < 5
    assert len(good.batches) >= 20


def test_a_server_that_fails_in_a_row_is_left_out_and_comes_back_when_it_scores() -> None:
    healthy = threading.Event()
    with (
        fake_judge(lambda n: ones(n) if healthy.is_set() else error(500)) as flaky,
        fake_judge(twos) as good,
        RemoteGPTRMClient(config(flaky.port, good.port, max_batch_size=1, max_in_flight=1)) as client,
    ):
        assert results(client, 30) == [Score(2.0)] * 30
        assert len(flaky.batches) < 15, "while it is out, it is tried out now and then and not asked"
        healthy.set()
        deadline = time.monotonic() + 20
        while Score(1.0) not in results(client, 4):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_server_that_answers_sooner_gets_more() -> None:
    """The slow one takes as long as the other does for 16 batches, or until nothing is left to be asked."""

    def slow(num_rows: int) -> Answer:
        until = len(hare.batches) + 16
        while len(hare.batches) < until and sum(tortoise.batches) + sum(hare.batches) < 200:
            time.sleep(0.005)
        return ones(num_rows)

    def quick(num_rows: int) -> Answer:
        time.sleep(0.01)
        return ones(num_rows)

    with (
        fake_judge(slow) as tortoise,
        fake_judge(quick) as hare,
        RemoteGPTRMClient(config(tortoise.port, hare.port, max_batch_size=2, max_in_flight=2)) as client,
    ):
        assert results(client, 200) == [Score(1.0)] * 200
    assert len(hare.batches) > 5 * len(tortoise.batches)


def test_a_server_that_is_absent_at_the_start_is_told_and_joins_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    late = free_port()
    with (
        caplog.at_level(logging.INFO, "rs_aligner"),
        fake_judge(ones) as judge,
        RemoteGPTRMClient(
            config(judge.port, late, startup_timeout=0.5, max_batch_size=1, max_in_flight=1)
        ) as client,
    ):
        assert results(client, 3) == [Score(1.0)] * 3
        assert f"127.0.0.1:{late} is left out until it scores" in caplog.text
        with fake_judge(twos, port=late):
            deadline = time.monotonic() + 20
            while Score(2.0) not in results(client, 4):
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_none_of_several_servers_is_one_message_with_all_addresses() -> None:
    first, second = free_port(), free_port()
    with pytest.raises(JudgeUnreachable) as caught:
        RemoteGPTRMClient(config(first, second, startup_timeout=0.5)).wait_until_ready()
    for part in (f"127.0.0.1:{first}: Conn", f"127.0.0.1:{second}: Conn", "remote_rm.endpoints"):
        assert part in str(caught.value)


def test_servers_that_take_different_kinds_of_requests_are_refused() -> None:
    with (
        fake_judge(ones) as texts,
        fake_judge(ones, ("tokens", "sequence_lengths")) as tokens,
        pytest.raises(ValueError, match=r"remote_rm\.endpoints (text|tokens); set remote_rm\.mode"),
    ):
        RemoteGPTRMClient(config(texts.port, tokens.port)).wait_until_ready()


def test_delays_grow_and_never_are_the_same_for_all() -> None:
    for round_ in range(40):
        drawn = [jittered(round_) for _ in range(50)]
        assert 0 < min(drawn) < max(drawn) <= LONGEST_DELAY
    assert max(jittered(0) for _ in range(50)) < min(jittered(3) for _ in range(50))


@pytest.mark.parametrize(
    ("round_", "longest"), [(0, 0.25), (1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0), (99, 8.0)]
)
def test_the_first_delay_is_a_quarter_of_a_second_and_each_doubles_up_to_eight(
    monkeypatch: pytest.MonkeyPatch, round_: int, longest: float
) -> None:
    """Half of it at random, so that not all come back at one moment."""
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    monkeypatch.setattr("rs_aligner.remote.retry.random.uniform", uniform)
    assert jittered(round_) == longest
    assert drawn == [(0.5, 1.0)]


def test_a_request_waits_the_first_delay_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rs_aligner.remote.retry.jittered", lambda round_: 10.0 + round_)
    patience = Patience(seconds=None, attempts=4)
    assert [patience.failed() for _ in range(5)] == [10.0, 11.0, 12.0, None, None]
    assert patience.failures == 5


def test_with_retry_the_last_delay_ends_when_patience_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("rs_aligner.remote.retry.time.monotonic", lambda: clock)
    monkeypatch.setattr("rs_aligner.remote.retry.jittered", lambda round_: 2.0 * (round_ + 1))
    patience = Patience(seconds=7.0, attempts=4)
    clock = 200.0  # patience begins with the first failure
    waited = []
    while (delay := patience.failed()) is not None:
        waited.append(delay)
        clock += delay
    assert waited == [2.0, 4.0, 1.0]


def test_a_server_that_was_left_out_is_tried_out_after_the_first_delay_of_its_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once, it would be the run's requests that find out whether it is well again."""
    rounds: list[int] = []

    def delay(round_: int) -> float:
        rounds.append(round_)
        return 0.0

    monkeypatch.setattr("rs_aligner.remote.endpoints.jittered", delay)
    trials: list[float | None] = []
    endpoint = Endpoint("http://one", lambda: None)
    left = [3, 2]  # failing trials of the first and the second outage

    def try_out(_: Endpoint[None], seconds: float | None) -> None:
        trials.append(seconds)
        if len(trials) > 1 and left and left[0] > 0:
            left[0] -= 1
            raise TransportError("away", "unreachable")

    pool = EndpointPool([endpoint], 1, try_out)
    pool.open(5)
    assert (rounds, len(trials)) == ([], 1)
    for expected in ([1, 2, 3, 4], [2, 3, 4]):
        rounds.clear()
        taken = pool.acquire(avoid=None, outage=5)
        assert taken is endpoint
        pool.failed(endpoint, TransportError("away", "unreachable"))
        assert pool.acquire(avoid=None, outage=5) is endpoint
        assert rounds == expected
        endpoint.in_flight -= 1  # as if it were still unanswered when the server goes away again
        left.pop(0)
    pool.close()


def waiting(length: int, due: float = 0.0) -> Waiting[int, None]:
    return Waiting(row=length, length=length, due=due, id=b"")


def test_rows_of_similar_length_leave_together_and_the_oldest_goes_first() -> None:
    queue: RowQueue[int, None] = RowQueue(batch_size=3, room=100)
    for length in (50, 1, 100, 52, 2, 99, 48, 3, 101, 7):
        queue.put(waiting(length))
    batches = [[one.row for one in queue.take()] for _ in range(4)]
    assert [sorted(batch) for batch in batches] == [[48, 50, 52], [1, 2, 3], [99, 100, 101], [7]]


def test_a_file_or_the_environment_holds_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RS_ALIGNER_JUDGE_TOKEN", raising=False)
    assert read_token("key", None, JUDGE_TOKEN) is None
    monkeypatch.setenv("RS_ALIGNER_JUDGE_TOKEN", "from the environment".replace(" ", "-"))
    assert read_token("key", None, JUDGE_TOKEN) == "from-the-environment"
    file = tmp_path / "token"
    file.write_text("sekret\n")
    assert read_token("key", str(file), JUDGE_TOKEN) == "sekret"
    file.write_text("two words")
    with pytest.raises(ValueError, match="one token of printable ASCII"):
        read_token("key", str(file), JUDGE_TOKEN)
    with pytest.raises(ValueError, match=r"key=.*cannot be read"):
        read_token("key", str(tmp_path / "absent"), JUDGE_TOKEN)


def test_a_judge_in_the_same_process_scores_with_the_same_checks(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def judge(prompts, responses, metadata):\n"
        "    if 'raise' in responses: raise KeyError('bad')\n"
        "    return [float('nan') if r == 'nan' else {'reward': len(r), 'short': 1} for r in responses]\n"
    )
    judge = JudgeConfig(function=f"{tmp_path}/mine.py:judge")
    with RemoteGPTRMClient(RemoteRMConfig(in_process=True, judge=judge)) as client:
        futures = [client.submit(*row(text)) for text in ("abc", "nan", "raise", "a")]
        client.flush()
        found = [future.result(timeout=30) for future in futures]
        fingerprint = client.fingerprint
    assert found[0] == Score(3.0, {"short": 1.0})
    assert found[3] == Score(1.0, {"short": 1.0})
    assert isinstance(found[0], Score)
    assert found[0].judge == fingerprint != ""
    assert all(isinstance(result, ScoreFailure) for result in found[1:3])
