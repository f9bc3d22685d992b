"""A judge that is handed over as an object: in which thread it is called, and alarms that it leaves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rs_aligner.config import RemoteRMConfig
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.reward.judges.alarm import alarm_kept
from rs_aligner.reward.judges.callables import judge_of
from rs_aligner.rollout import Prompt, Rollout, Score

pytestmark = pytest.mark.timeout(60, method="thread")  # the other method is an alarm itself


@pytest.fixture(autouse=True)
def no_alarm() -> Iterator[None]:
    """Nothing of a test stays for the next one."""
    handler = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)


def rollout(number: int) -> tuple[Prompt, Rollout]:
    return Prompt(f"p{number}", "prompt", (1,)), Rollout(0, number, (1,), "x" * number, "stop")


def test_it_is_called_in_the_thread_that_hands_rows_in_and_by_no_other() -> None:
    calls: list[tuple[threading.Thread, list[str]]] = []

    def judge(prompts: list[str], responses: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        calls.append((threading.current_thread(), responses))
        return [float(len(response)) for response in responses]

    before = threading.active_count()
    with RemoteGPTRMClient(RemoteRMConfig(max_batch_size=3), judge_of(judge)) as client:
        futures = [client.submit(*rollout(number)) for number in range(5)]
        assert [future.done() for future in futures] == [True, True, True, False, False]
        assert threading.active_count() == before
        client.flush()
        scores = [future.result(timeout=0) for future in futures]
        assert client.fingerprint
    assert [score.reward for score in scores if isinstance(score, Score)] == [0, 1, 2, 3, 4]
    assert [rows for _, rows in calls] == [["", "x", "xx"], ["xxx", "xxxx"]]  # and none that was made up
    assert {thread for thread, _ in calls} == {threading.current_thread()}


def test_rows_that_are_left_when_it_closes_get_a_failure() -> None:
    with RemoteGPTRMClient(RemoteRMConfig(), judge_of(lambda prompts, responses, metadata: [1.0])) as client:
        future = client.submit(*rollout(1))
    assert "closed before the judge answered" in str(future.result(timeout=0))


def test_token_mode_is_refused_as_for_any_judge_of_texts() -> None:
    with (
        RemoteGPTRMClient(RemoteRMConfig(mode="tokens"), judge_of(lambda samples: [1.0])) as client,
        pytest.raises(ValueError, match=r"remote_rm\.mode=tokens does not fit"),
    ):
        client.wait_until_ready()


def test_an_alarm_and_a_handler_that_a_call_leaves_are_taken_back() -> None:
    def leaves(samples: list[str]) -> list[float]:
        signal.signal(signal.SIGALRM, lambda number, frame: None)
        signal.setitimer(signal.ITIMER_REAL, 60)
        return [0.0] * len(samples)

    before = signal.getsignal(signal.SIGALRM)
    assert list(judge_of(leaves).score_texts(["a"], ["b"], [{}])) == [0.0]
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_timer_of_the_caller_goes_on_as_if_the_judge_had_none() -> None:
    rung: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 30, 7)
    with alarm_kept():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        time.sleep(0.05)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert 29 < left < 30
    assert interval == 7
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not rung:
        time.sleep(0.01)


def test_in_another_thread_nothing_is_touched() -> None:
    found: list[Any] = []

    def call() -> None:
        with alarm_kept():
            found.append(signal.getsignal(signal.SIGALRM))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGALRM)]
