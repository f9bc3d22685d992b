"""How the client batches, overlaps, fails and ends, against a stand-in for the server."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from rs_aligner.config import EndpointConfig, RemoteRMConfig
from rs_aligner.remote.queue import Waiting
from rs_aligner.reward.client import JudgeUnreachable, RemoteGPTRMClient
from rs_aligner.reward.judges.functions import FunctionJudge
from rs_aligner.rollout import Score, ScoreFailure
from tests.ports import free_port
from tests.reward.fake_judge import Answer, fake_judge, rewards
from tests.reward.rows import row

pytestmark = pytest.mark.timeout(60)


def config(port: int, name: str = "reward_model", ip: str = "127.0.0.1", **settings: Any) -> RemoteRMConfig:
    """Of a client that asks once, unless the settings say otherwise."""
    once = {"on_failure": "drop", "max_attempts": 1}
    return RemoteRMConfig(reward_model=EndpointConfig(name=name, ip=ip, port=port), **{**once, **settings})


def ones(num_rows: int) -> Answer:
    return rewards([1.0] * num_rows)


def submit(client: RemoteGPTRMClient, count: int) -> list[Future[Score | ScoreFailure]]:
    return [client.submit(*row()) for _ in range(count)]


def reasons(futures: list[Future[Score | ScoreFailure]]) -> set[str]:
    results = [future.result(timeout=10) for future in futures]
    assert all(isinstance(result, ScoreFailure) for result in results), results
    return {result.reason for result in results if isinstance(result, ScoreFailure)}


def judge_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("judge-")]


@pytest.fixture(autouse=True)
def short_outages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rs_aligner.remote.retry.SHORT_OUTAGE", 3.0)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert judge_threads() == []


def test_full_batches_leave_at_once_and_the_rest_when_its_time_has_come() -> None:
    with (
        fake_judge(ones) as judge,
        RemoteGPTRMClient(config(judge.port, max_batch_size=8, max_wait_seconds=1.0)) as client,
    ):
        client.wait_until_ready()
        start = time.monotonic()
        futures = submit(client, 19)
        assert [future.result(timeout=10) for future in futures[:16]] == [Score(1.0)] * 16
        assert time.monotonic() - start < 1.0
        assert not futures[16].done()
        assert [future.result(timeout=10) for future in futures[16:]] == [Score(1.0)] * 3
        assert time.monotonic() - start >= 1.0
    assert judge.batches == [8, 8, 3]


def test_flush_sends_what_is_waiting() -> None:
    with (
        fake_judge(ones) as judge,
        RemoteGPTRMClient(config(judge.port, max_wait_seconds=50)) as client,
    ):
        futures = submit(client, 3)
        client.flush()
        assert [future.result(timeout=10) for future in futures] == [Score(1.0)] * 3
    assert judge.batches == [3]


def test_many_threads_may_hand_in_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny switch interval lets threads meet wherever they can."""
    from tests.reward.triton_judge import truth

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        judge = FunctionJudge(lambda prompts, responses, rows: [truth(r) for r in responses], "f")
        found: dict[str, Future[Score | ScoreFailure]] = {}
        ids: list[bytes] = []
        errors: list[BaseException] = []
        with RemoteGPTRMClient(RemoteRMConfig(max_batch_size=16, max_queued=64), judge) as client:
            put = client._asker._queue.put

            def noted(waiting: Waiting[Any, Score | ScoreFailure]) -> bool:
                ids.append(waiting.id)
                return put(waiting)

            monkeypatch.setattr(client._asker._queue, "put", noted)

            def work(number: int) -> None:
                try:
                    for text in (f"{number} {i}" for i in range(200)):
                        found[text] = client.submit(*row(text))
                    client.flush()
                except BaseException as error:
                    errors.append(error)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert errors == []
            client.flush()
            scores = {text: future.result(timeout=20) for text, future in found.items()}
    finally:
        sys.setswitchinterval(before)
    assert scores == {text: Score(truth(text)) for text in found}
    assert len(set(ids)) == len(ids) == 12 * 200


def test_requests_overlap_but_no_more_of_them_than_allowed() -> None:
    def slow(num_rows: int) -> Answer:
        time.sleep(0.1)
        return ones(num_rows)

    with (
        fake_judge(slow) as judge,
        RemoteGPTRMClient(config(judge.port, max_batch_size=2, max_in_flight=3)) as client,
    ):
        client.wait_until_ready()
        start = time.monotonic()
        futures = submit(client, 24)
        submitted = time.monotonic() - start
        assert all(future.result(timeout=10) == Score(1.0) for future in futures)
        finished = time.monotonic() - start
    assert judge.most_at_once == 3
    assert submitted < finished / 2, "submitting must not wait for answers"
    assert finished < 12 * 0.1, "requests must overlap"


def test_submitting_waits_while_the_queue_is_full() -> None:
    gate = threading.Event()

    def held(num_rows: int) -> Answer:
        gate.wait(20)
        return ones(num_rows)

    with (
        fake_judge(held) as judge,
        RemoteGPTRMClient(config(judge.port, max_batch_size=1, max_in_flight=1, max_queued=1)) as client,
    ):
        client.wait_until_ready()
        futures = submit(client, 1)
        while not judge.batches:
            time.sleep(0.01)
        futures += submit(client, 1)  # waits in the queue, which is full now
        thread = threading.Thread(target=lambda: futures.extend(submit(client, 1)))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        gate.set()
        thread.join(10)
        assert [future.result(timeout=10) for future in futures] == [Score(1.0)] * 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            (500, {"error": "Traceback\n  File x\nValueError: out of memory"}),
            "HTTP 500: ValueError: out of memory",
        ),
        ((200, {"outputs": []}), "no `rewards`"),
        ((200, {"outs": []}), "cannot be read: KeyError"),
        (rewards([1.0, 2.0]), r"shape [2, 1] for 3 rows"),
        (rewards([math.nan] * 3), "the judge's reward is nan"),
    ],
)
def test_a_bad_answer_fails_its_rows_with_the_reason(answer: Answer, reason: str) -> None:
    with (
        fake_judge(lambda _: answer) as judge,
        RemoteGPTRMClient(config(judge.port, max_batch_size=3)) as client,
    ):
        texts = reasons(submit(client, 3))
    assert all(reason in text for text in texts)


def test_a_judge_that_does_not_answer_in_time_fails_its_rows_and_the_next_may_succeed() -> None:
    late = [3.0, 0.0]

    def answer(num_rows: int) -> Answer:
        time.sleep(late.pop(0))
        return ones(num_rows)

    with (
        fake_judge(answer) as judge,
        RemoteGPTRMClient(config(judge.port, request_timeout=1, max_wait_seconds=0.01)) as client,
    ):
        (reason,) = reasons(submit(client, 1))
        assert reason == f"http://127.0.0.1:{judge.port}: no answer within 1 s (remote_rm.request_timeout)"
        assert client.submit(*row()).result(timeout=10) == Score(1.0)


def test_a_judge_that_has_gone_fails_its_rows() -> None:
    with fake_judge(ones) as judge:
        client = RemoteGPTRMClient(config(judge.port))
        client.wait_until_ready()
    with client:
        (reason,) = reasons(submit(client, 2))
    assert "refused" in reason


def test_a_row_that_cannot_be_sent_fails_alone() -> None:
    with (
        fake_judge(ones, inputs=("tokens", "sequence_lengths")) as judge,
        RemoteGPTRMClient(config(judge.port, pad_to_length=10)) as client,
    ):
        too_long = client.submit(*row(tokens=8))
        fits = client.submit(*row(tokens=7))
        assert "remote_rm.pad_to_length=10" in reasons([too_long]).pop()
        assert fits.result(timeout=10) == Score(1.0)


@pytest.mark.parametrize(
    ("mode", "inputs", "sent"),
    [
        ("auto", ("tokens", "sequence_lengths", "sentences"), ["tokens", "sequence_lengths"]),
        ("auto", ("tokens", "sequence_lengths", "prompts"), ["prompts", "responses", "metadata"]),
        ("tokens", ("tokens", "sequence_lengths", "prompts"), ["tokens", "sequence_lengths"]),
    ],
)
def test_the_mode_follows_the_config_and_the_models_inputs(
    mode: str, inputs: tuple[str, ...], sent: list[str]
) -> None:
    with (
        fake_judge(ones, inputs) as judge,
        RemoteGPTRMClient(config(judge.port, mode=mode)) as client,
    ):
        assert client.submit(*row()).result(timeout=10) == Score(1.0)
    assert judge.names == sent


def test_a_mode_that_the_model_does_not_take_is_refused() -> None:
    with fake_judge(ones, ("tokens", "sequence_lengths")) as judge:
        client = RemoteGPTRMClient(config(judge.port, mode="text"))
        with pytest.raises(
            ValueError, match=r"remote_rm\.mode=text .*sequence_lengths.*set remote_rm\.mode=tokens"
        ):
            client.wait_until_ready()


def test_closing_fails_what_has_no_answer_and_ends_the_threads_at_once() -> None:
    gate = threading.Event()

    def held(num_rows: int) -> Answer:
        gate.wait(20)
        return ones(num_rows)

    with fake_judge(held) as judge:
        client = RemoteGPTRMClient(config(judge.port, max_batch_size=2, max_in_flight=2))
        futures = submit(client, 7)
        while len(judge.batches) < 2:
            time.sleep(0.01)
        start = time.monotonic()
        client.close()
        assert reasons(futures) == {"the client was closed before the judge answered"}
        assert judge_threads() == []
        assert time.monotonic() - start < 1.0
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.submit(*row())
        gate.set()


def test_a_cancelled_row_is_not_sent() -> None:
    with (
        fake_judge(ones) as judge,
        RemoteGPTRMClient(config(judge.port, max_wait_seconds=50)) as client,
    ):
        first, second = submit(client, 2)
        assert first.cancel()
        client.flush()
        assert second.result(timeout=10) == Score(1.0)
    assert judge.batches == [1]


def test_nobody_there_is_one_clear_message_within_the_timeout() -> None:
    port = free_port()
    start = time.monotonic()
    with pytest.raises(JudgeUnreachable) as caught:
        RemoteGPTRMClient(config(port, startup_timeout=1)).wait_until_ready()
    assert time.monotonic() - start < 2
    message = str(caught.value)
    for part in [
        f"http://127.0.0.1:{port}/v2/models/reward_model",
        "after 1 s",
        "refused",
        f"`rs-aligner serve inference.port={port} inference.model_name=reward_model judge.function=",
        f"inference.port={port}",
        "remote_rm.reward_model.ip, .port or .name",
        "remote_rm.startup_timeout",
    ]:
        assert part in message
    assert "\n" not in message


def test_a_host_that_swallows_packets_is_given_up_within_the_timeout() -> None:
    with socket.socket() as listener:  # with its queue full, a connection attempt gets no answer
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            start = time.monotonic()
            with pytest.raises(JudgeUnreachable, match="no answer within"):
                RemoteGPTRMClient(config(listener.getsockname()[1], startup_timeout=1)).wait_until_ready()
            assert time.monotonic() - start < 2


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(JudgeUnreachable, match=r"http://no-such-host\.invalid:5555"):
        RemoteGPTRMClient(config(5555, ip="no-such-host.invalid", startup_timeout=0.5)).wait_until_ready()


def test_another_models_name_is_answered_with_the_models_that_are_there() -> None:
    with fake_judge(ones) as judge:
        client = RemoteGPTRMClient(config(judge.port, name="rewardmodel", startup_timeout=0.3))
        with pytest.raises(JudgeUnreachable, match="HTTP 400: no such model; models there: reward_model"):
            client.wait_until_ready()


def test_a_process_that_forgets_to_close_its_client_still_ends() -> None:
    code = (
        "import sys; from tests.reward.client.test_client import *\n"
        "there, gone = (EndpointConfig(port=int(port)) for port in sys.argv[1:])\n"
        "client = RemoteGPTRMClient(RemoteRMConfig(endpoints=[there, gone], max_wait_seconds=100))\n"
        "client.submit(*row()); print(judge_threads())\n"
    )
    with fake_judge(ones) as judge:
        ports = str(judge.port), str(free_port())
        output = subprocess.check_output([sys.executable, "-c", code, *ports], text=True, timeout=30)
    assert "judge-0" in output
    assert "judge-probe" in output
