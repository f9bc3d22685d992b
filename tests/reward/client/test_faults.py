"""What can happen to judges in a week, to real PyTriton servers on loopback, under a run that goes on.

The policy is a fake, the rest of a run is real. In each test every rollout ends truly scored (by the known
truth) or marked failed, and where all were scored in the end, all that the run wrote is what it writes
without faults. An answer that no real server gives comes from a proxy in front of one.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import EndpointConfig, RemoteRMConfig
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.rollout import Prompt, Rollout, Score
from tests.fake_run import FakeRun, figures
from tests.ports import free_port
from tests.reward.client import faulty_proxy as faults
from tests.reward.client.faulty_proxy import faulty_proxy
from tests.reward.rows import row
from tests.reward.triton_judge import FINGERPRINT, TritonJudge, has_no_number, triton_judge, truth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

STEPS = 4
SMALL: dict[str, Any] = {"max_batch_size": 4, "max_wait_seconds": 0.02, "max_in_flight": 2}


def true_score(prompt: Prompt, rollout: Rollout) -> Score:
    return Score(truth(rollout.text))


def endpoints(*ports: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in ports]


def start(run: FakeRun, *ports: int, **settings: Any) -> None:
    """Train against the servers at these ports."""
    remote_rm = {"endpoints": endpoints(*ports), **SMALL, **settings}
    run.start(
        judge=RemoteGPTRMClient, remote_rm=remote_rm, steps=STEPS, interval=2, seconds_per_rollout=0.005
    )


def ledger(run: FakeRun) -> list[LedgerRow]:
    return [line for step in run.ledger.steps() for line in run.ledger.read(step)]


def check_all_true_or_failed(run: FakeRun) -> list[LedgerRow]:
    """Every rollout of the run, after making sure that none has a score that is not its own."""
    rows = ledger(run)
    for line in rows:
        if line.reward is None:
            assert line.failure
            assert not line.kept
        else:
            assert line.reward == truth(line.response)
            assert line.judge == FINGERPRINT
    return rows


def check_as_without_faults(run: FakeRun, folder: Path) -> None:
    """All was scored in the end, and nothing that the run wrote tells that anything happened."""
    rows = check_all_true_or_failed(run)
    assert all(line.reward is not None for line in rows)
    calm = FakeRun(folder / "calm")
    calm.start(true_score, steps=STEPS, interval=2)
    assert run.ledger.steps() == [1, 2, 3, 4]
    for ours, theirs in zip(rows, ledger(calm), strict=True):
        assert (ours.prompt_id, ours.index, ours.token_ids) == (
            theirs.prompt_id,
            theirs.index,
            theirs.token_ids,
        )
        assert (ours.reward, ours.kept, ours.reason) == (theirs.reward, theirs.kept, theirs.reason)
    assert figures(run.rows) == figures(calm.rows)
    assert (run.folder / "final" / "weights").read_text() == (calm.folder / "final" / "weights").read_text()


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "run")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonJudge]:
    """A server for tests that leave it alive."""
    with triton_judge(tmp_path_factory.mktemp("shared"), free_port()) as judge:
        yield judge


@pytest.fixture
def judge(shared: TritonJudge) -> Iterator[TritonJudge]:
    shared.behave("")
    yield shared
    shared.behave("")


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[TritonJudge]:
    """A server to be killed."""
    with triton_judge(tmp_path / "doomed", free_port()) as judge:
        yield judge


def meanwhile(what: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def kill_in_mid_request(judge: TritonJudge, then: Callable[[], None] = lambda: None) -> threading.Thread:
    """As soon as a request is under way, and not answered, SIGKILL."""

    def wait_and_kill() -> None:
        judge.wait_until_at_work()
        judge.kill()
        judge.behave("")
        then()

    judge.behave("hold")
    return meanwhile(wait_and_kill)


def test_a_server_that_is_killed_in_mid_request_and_restarted(
    run: FakeRun, doomed: TritonJudge, tmp_path: Path
) -> None:
    killer = kill_in_mid_request(doomed, then=doomed.start)
    start(run, doomed.port, on_failure="retry")
    killer.join()
    check_as_without_faults(run, tmp_path)


def test_a_server_that_is_killed_for_good_with_a_second_one_alive(
    run: FakeRun, doomed: TritonJudge, judge: TritonJudge, tmp_path: Path
) -> None:
    killer = kill_in_mid_request(doomed)
    began = time.monotonic()
    start(run, doomed.port, judge.port, on_failure="drop")
    killer.join()
    check_as_without_faults(run, tmp_path)
    assert time.monotonic() - began < 30, "the living one is asked at once, and the dead one no more"


def test_a_server_that_is_killed_for_good_and_alone_stops_the_run_saved_and_it_continues(
    run: FakeRun, doomed: TritonJudge, tmp_path: Path
) -> None:
    def kill_in_step_3() -> None:
        while len(run.ledger.steps()) < 2 if run.folder.exists() else True:
            time.sleep(0.005)
        kill_in_mid_request(doomed).join()

    killer = meanwhile(kill_in_step_3)
    with pytest.raises(JudgeFailed, match=r"(step 3|validation): .* rollouts.*127\.0\.0\.1") as error:
        start(run, doomed.port, on_failure="retry", give_up_after=2)
    killer.join()
    assert "\n" not in str(error.value)
    assert "ConnectionRefusedError" in str(error.value)
    assert run.checkpoints()[-1] == "step_000002"
    check_all_true_or_failed(run)
    doomed.start()
    doomed.wait_until_ready()
    start(run, doomed.port)
    check_as_without_faults_up_to_validation(run, tmp_path)


def check_as_without_faults_up_to_validation(run: FakeRun, folder: Path) -> None:
    """As `check_as_without_faults`; a validation that could not be scored leaves no figure."""
    rows = check_all_true_or_failed(run)
    calm = FakeRun(folder / "calm")
    calm.start(true_score, steps=STEPS, interval=2)
    assert [line.kept for line in rows] == [line.kept for line in ledger(calm)]
    assert (run.folder / "final" / "weights").read_text() == (calm.folder / "final" / "weights").read_text()


def test_a_server_that_is_frozen_past_the_deadline_and_thaws(
    run: FakeRun, doomed: TritonJudge, tmp_path: Path
) -> None:
    def freeze() -> None:
        while not run.ledger.steps() if run.folder.exists() else True:
            time.sleep(0.005)
        doomed.signal(signal.SIGSTOP)
        time.sleep(4)
        doomed.signal(signal.SIGCONT)

    freezer = meanwhile(freeze)
    start(run, doomed.port, on_failure="retry", request_timeout=1)
    freezer.join()
    check_as_without_faults(run, tmp_path)


def test_a_frozen_server_is_left_out_while_another_one_answers(
    run: FakeRun, doomed: TritonJudge, judge: TritonJudge, tmp_path: Path
) -> None:
    def freeze() -> None:
        while not run.ledger.steps() if run.folder.exists() else True:
            time.sleep(0.005)
        doomed.signal(signal.SIGSTOP)

    freezer = meanwhile(freeze)
    start(run, doomed.port, judge.port, on_failure="drop", request_timeout=1)
    freezer.join()
    check_as_without_faults(run, tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_rewards_that_are_no_numbers_are_failures_and_their_neighbours_keep_theirs(
    run: FakeRun, judge: TritonJudge, value: str
) -> None:
    judge.behave(value)
    start(run, judge.port)
    rows = check_all_true_or_failed(run)
    failed = [line for line in rows if line.reward is None]
    assert 0 < len(failed) < len(rows) / 2
    for line in rows:
        assert (line.reward is None) == has_no_number(line.response)
        assert line.failure in (None, f"the judge's reward is {value}")


def test_errors_one_time_in_three(run: FakeRun, judge: TritonJudge, tmp_path: Path) -> None:
    judge.behave("fail")
    start(run, judge.port)
    check_as_without_faults(run, tmp_path)


def test_a_server_that_becomes_twenty_times_slower(run: FakeRun, judge: TritonJudge, tmp_path: Path) -> None:
    judge.behave("slow 0.005")

    def slow_down() -> None:
        while not run.ledger.steps() if run.folder.exists() else True:
            time.sleep(0.005)
        judge.behave("slow 0.1")

    slower = meanwhile(slow_down)
    start(run, judge.port)
    slower.join()
    check_as_without_faults(run, tmp_path)


@pytest.mark.parametrize("spoiler", faults.SPOILERS, ids=lambda spoiler: spoiler.__name__)
def test_a_third_of_the_answers_spoilt(
    run: FakeRun, judge: TritonJudge, tmp_path: Path, spoiler: faults.Spoiler
) -> None:
    with faulty_proxy(judge.port) as proxy:
        proxy.spoiler = spoiler
        start(run, proxy.port)
        assert proxy.spoilt >= 5
    check_as_without_faults(run, tmp_path)


def test_a_server_that_is_replaced_by_another_judge_stays_out_and_the_reason_is_told(
    run: FakeRun, doomed: TritonJudge, tmp_path: Path
) -> None:
    other = TritonJudge(tmp_path / "other", doomed.port, "ours", "beef")
    killer = kill_in_mid_request(doomed, then=other.start)
    try:
        with pytest.raises(JudgeFailed, match=f"fingerprints are beef and {FINGERPRINT}"):
            start(run, doomed.port, on_failure="retry", give_up_after=20)
    finally:
        killer.join()
        other.kill()
    check_all_true_or_failed(run)


def seconds_for(count: int, remote_rm: RemoteRMConfig) -> float:
    with RemoteGPTRMClient(remote_rm) as client:
        client.wait_until_ready()
        began = time.monotonic()
        futures = [client.submit(*row(f"text {number}")) for number in range(count)]
        assert [future.result(timeout=60) for future in futures] == [
            Score(truth(f"text {number}")) for number in range(count)
        ]
        return time.monotonic() - began


def test_a_second_server_adds_throughput(judge: TritonJudge, doomed: TritonJudge) -> None:
    """The judges sleep, as one on a device of its own lets the processor be."""
    for one in (judge, doomed):
        one.behave("slow 0.005")
    both = [EndpointConfig(ip="127.0.0.1", port=one.port) for one in (judge, doomed)]
    settings: dict[str, Any] = {"max_batch_size": 16, "max_in_flight": 2}
    alone = seconds_for(640, RemoteRMConfig(endpoints=(both[0],), **settings))
    together = seconds_for(640, RemoteRMConfig(endpoints=tuple(both), **settings))
    print(f"640 rows: one server {alone:.2f} s, two {together:.2f} s")
    assert alone >= 3.2
    assert together < 0.7 * alone
