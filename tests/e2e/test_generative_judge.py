"""A language model as the judge, by the commands: what it says is trained on, what it costs is shown."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rs_aligner.config import RemoteRMConfig
from rs_aligner.record.ledger import Ledger
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.rollout import Score, ScoreFailure
from tests.e2e.launch import read_metrics, run_script
from tests.ports import free_port
from tests.reward.judges.generative.stand_in import MODEL, Reply, Request, StandIn, stand_in
from tests.reward.rows import row
from tests.reward.server.test_server import metrics
from tests.reward.service import service
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


def by_length(request: Request) -> Reply:
    """The longer, the better; a text with a z in it makes the judge talk."""
    text = (
        request["messages"][-1]["content"].split("\n<response ")[1].split("\n", 1)[1].split("\n</response")[0]
    )
    return Reply("well" if "z" in text else str(min(len(text), 10)))


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as running:
        running.reply = by_length
        yield running


def test_a_run_is_trained_by_what_a_language_model_says(server: StandIn, tmp_path: Path) -> None:
    save_tiny_with_tokenizer(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(8)))
    (tmp_path / "template.txt").write_text("Text:\n{response}\n{criterion}")
    run = tmp_path / "run"
    done = run_script(
        "train_rs.py",
        f"exp_manager.explicit_log_dir={run}",
        f"pretrained_checkpoint.restore_from_path={tmp_path / 'policy'}",
        f"model.data.data_prefix.train={tmp_path / 'prompts.jsonl'}",
        *("exp_manager.create_tensorboard_logger=false", "trainer.accelerator=cpu"),
        *("model.rs.num_rollout_samples=4", "model.rs.length_params.max_length=8"),
        *("model.global_batch_size=4", "remote_rm.in_process=true", "remote_rm.judge.name=openai"),
        "remote_rm.judge.time_limit=60",
        f"remote_rm.judge.kwargs={{url: '{server.url}', model: {MODEL}, "
        f"template_file: '{tmp_path / 'template.txt'}'}}",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert f"the judge {MODEL}: " in done.stdout
    rows = read_metrics(run)
    assert [step["judge/requests"] for step in rows] == [16, 16]
    assert [step["judge/unreadable_answers"] for step in rows] == [step["rollouts/failed"] for step in rows]
    for line in [line for step in (1, 2) for line in Ledger(run / "rollouts").read(step)]:
        if "z" in line.response:
            assert line.reward is None
        else:
            assert line.reward == min(len(line.response), 10)
    assert "tokens of the judge" in (run / "report.html").read_text()


def test_a_server_asks_a_language_model_for_several_clients_at_once(server: StandIn, tmp_path: Path) -> None:
    kwargs = f"judge.kwargs={{url: '{server.url}', model: {MODEL}}}"
    with service(tmp_path, free_port(), "judge.name=openai", "judge.time_limit=60", kwargs) as running:
        running.wait_until_ready()
        with RemoteGPTRMClient(RemoteRMConfig(endpoints=(f"127.0.0.1:{running.port}",))) as client:  # type: ignore[arg-type]  # as people write it
            futures = [client.submit(*row(text)) for text in ("abc", "z", "abcdef")]
            client.flush()
            one, none, other = [future.result(60) for future in futures]
            assert (one, other) == (Score(3.0), Score(6.0))
            assert isinstance(none, ScoreFailure)
            assert "the verdict cannot be read: it is not one number alone: 'well'" in none.reason
            figures = metrics(running)
            assert figures["judge_requests_total"] == 5, "with its own trial, and the client's"
            assert figures["judge_unreadable_answers_total"] == 1
            assert figures["judge_prompt_tokens_total"] > 200

            never = threading.Event()
            server.answers(Reply(waits_for=never))
            waiting = [client.submit(*row(text)) for text in ("a", "b", "c")]
            client.flush()
            while not server.in_flight:
                time.sleep(0.02)
            running.process.terminate()
            assert running.process.wait(20) == 0, "it leaves whatever it waits for"
            never.set()
        assert all(isinstance(future.result(20), ScoreFailure) for future in waiting)
