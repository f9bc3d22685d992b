"""What a generative judge costs, where people look: in a run's figures, and on a server's page of metrics."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rs_aligner.config import JudgeConfig, RemoteRMConfig
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.reward.judges import load_judge
from rs_aligner.reward.judges.combined import StandardisedJudge
from rs_aligner.reward.server.scorer import Scorer
from tests.fake_run import FakeRun, Killed
from tests.reward.judges.generative.stand_in import MODEL, Reply, Request, StandIn, stand_in
from tests.reward.rows import row

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as running:
        running.answers(Reply("7"))
        yield running


def settings(server: StandIn) -> JudgeConfig:
    return JudgeConfig(name="openai", kwargs={"url": server.url, "model": MODEL}, time_limit=20)


def test_each_step_of_a_run_has_what_its_judge_cost(server: StandIn, tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    cfg = RemoteRMConfig(in_process=True, judge=settings(server))
    run.start(steps=2, judge=lambda _: RemoteGPTRMClient(cfg))
    validation, *steps = run.rows
    for step in steps:
        assert step["judge/requests"] == step["rollouts/total"] == step["rollouts/scored"]
        assert step["judge/completion_tokens"] == step["judge/requests"]
        assert step["judge/prompt_tokens"] > 50 * step["judge/requests"]
        assert step["judge/retries"] == 0
    assert validation["validation/judge/requests"] > 0
    held_out = sum(one.get("validation/judge/requests", 0) for one in run.rows)
    assert len(server.asked) == 1 + held_out + sum(step["judge/requests"] for step in steps)


def test_a_verdict_is_known_as_soon_as_it_is_there_in_a_run_without_a_server(server: StandIn) -> None:
    never = threading.Event()

    def hangs(request: Request) -> Reply:
        return Reply("7", waits_for=never if "slow" in request["messages"][-1]["content"] else None)

    parts = {"told": {"name": "openai", "kwargs": settings(server).kwargs, "time_limit": 20}}
    for judge in (settings(server), JudgeConfig.model_validate({"parts": parts})):
        server.answers(Reply("7"))
        with RemoteGPTRMClient(RemoteRMConfig(in_process=True, judge=judge)) as client:
            client.wait_until_ready()
            server.reply = hangs
            slow, *others = [client.submit(*row(text)) for text in ("slow", "a", "b")]
            client.flush()
            assert [future.result(20).reward for future in others] == [7.0, 7.0]  # type: ignore[union-attr]  # scores
            assert not slow.done()
    never.set()


def test_a_start_after_a_kill_asks_about_nothing_again(server: StandIn, tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    cfg = RemoteRMConfig(in_process=True, judge=settings(server))

    def start(before_train: Callable[[], None]) -> None:
        run.start(steps=1, interval=None, judge=lambda _: RemoteGPTRMClient(cfg), before_train=before_train)

    def killed() -> None:
        raise Killed

    with contextlib.suppress(Killed):
        start(killed)
    assert len(server.asked) == 1 + 1 + 16, "the judge's trial, the client's, and the rollouts"
    server.asked.clear()
    start(lambda: None)
    assert len(server.asked) == 1, "the judge's trial"
    [step] = run.rows
    assert step["rollouts/scored"] == 16
    assert step["judge/requests"] == 0


def test_a_step_of_several_rounds_has_the_cost_of_all(server: StandIn, tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    cfg = RemoteRMConfig(in_process=True, judge=settings(server))
    until = {"accepted": 1, "at_least": 8, "max_rollouts": 4, "rollouts_a_round": 1}
    run.start(steps=1, interval=None, judge=lambda _: RemoteGPTRMClient(cfg), until=until)
    [step] = run.rows
    assert step["judge/requests"] == step["rollouts/total"] + 1 == 17, "four rounds, and the client's trial"
    assert [len(server.asked)] == [18], "and the judge's"


def test_a_server_shows_what_its_judge_cost(server: StandIn) -> None:
    judge = StandardisedJudge(load_judge(settings(server)), mean=5.0, std=2.0)
    try:
        judge.score_texts(["a", "b"], ["c", "d"], [{}, {}])
        scorer = Scorer(judge, max_rows=8)
        lines = scorer.statistics.text("f", scorer.counters()).splitlines()
    finally:
        judge.close()
    assert "judge_requests_total 3" in lines
    assert "judge_completion_tokens_total 3" in lines
    assert "judge_unreadable_answers_total 0" in lines
    assert scorer.takes_calls_at_once
