"""Our client and real servers: NeMo-Aligner's contract, our own, and wrong names, ports, tokens and judges.

A client of that contract against our own server is tested in `test_service`.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import EndpointConfig, RemoteRMConfig
from rs_aligner.reward.client import JudgeUnreachable, RemoteGPTRMClient
from rs_aligner.rollout import Score, ScoreFailure
from tests.bars import BARS, beaten
from tests.ports import free_port
from tests.reward.rows import row
from tests.reward.service import Service, service
from tests.reward.triton_judge import FINGERPRINT, TritonJudge, triton_judge, truth_of_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

TOKEN = "sekret"


def remote(*ports: int, name: str = "reward_model", **settings: Any) -> RemoteRMConfig:
    servers = tuple(EndpointConfig(ip="127.0.0.1", port=port, name=name) for port in ports)
    return RemoteRMConfig(endpoints=servers, **{"startup_timeout": 3, **settings})


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonJudge]:
    """A reward model of NeMo-Aligner, behind a token."""
    with triton_judge(tmp_path_factory.mktemp("nemo"), free_port(), "nemo", FINGERPRINT, TOKEN) as judge:
        yield judge


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonJudge]:
    with triton_judge(tmp_path_factory.mktemp("ours"), free_port()) as judge:
        yield judge


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return str(file)


@pytest.mark.parametrize("pad_to_length", [None, 96])
def test_a_server_of_nemo_aligners_contract_scores_tokens(
    nemo: TritonJudge, token_file: str, pad_to_length: int | None
) -> None:
    rows = [row(tokens=length) for length in range(1, 80)]
    with RemoteGPTRMClient(
        remote(nemo.port, token_file=token_file, pad_to_length=pad_to_length, max_batch_size=8)
    ) as client:
        futures = [client.submit(*pair) for pair in rows]
        client.flush()
        found = [future.result(timeout=30) for future in futures]
        assert client.fingerprint is None
    assert found == [Score(truth_of_tokens(prompt.token_ids + rollout.token_ids)) for prompt, rollout in rows]
    assert all(isinstance(score, Score) and score.judge == "" for score in found)


def test_the_token_may_come_from_the_environment(nemo: TritonJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RS_ALIGNER_JUDGE_TOKEN", TOKEN)
    with RemoteGPTRMClient(remote(nemo.port)) as client:
        assert isinstance(client.submit(*row()).result(timeout=30), Score)


def test_a_wrong_token_is_one_message_at_the_start(nemo: TritonJudge, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    began = time.monotonic()
    with pytest.raises(JudgeUnreachable, match=r"HTTP 403.*remote_rm\.token_file") as caught:
        RemoteGPTRMClient(remote(nemo.port, token_file=str(tmp_path / "token"))).wait_until_ready()
    assert f"127.0.0.1:{nemo.port}" in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert time.monotonic() - began < 3


def test_no_token_where_one_is_wanted_fails_the_rows_with_the_key_to_set(nemo: TritonJudge) -> None:
    """A server that offers no fingerprint is not tried out, so that it shows with the first rows."""
    with RemoteGPTRMClient(remote(nemo.port)) as client:
        result = client.submit(*row()).result(timeout=30)
    assert isinstance(result, ScoreFailure)
    assert "HTTP 403" in result.reason
    assert "remote_rm.token_file" in result.reason


def test_a_model_that_is_not_there_is_named_with_those_that_are(ours: TritonJudge) -> None:
    with pytest.raises(JudgeUnreachable, match=r"rewardmodel.*remote_rm\.endpoints") as caught:
        RemoteGPTRMClient(remote(ours.port, name="rewardmodel", startup_timeout=1)).wait_until_ready()
    assert f"127.0.0.1:{ours.port}" in str(caught.value)
    assert "HTTP 404" in str(caught.value) or "HTTP 400" in str(caught.value)


def test_a_port_with_something_else_is_named_with_what_answered() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def greet() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=greet, daemon=True).start()
        port = listener.getsockname()[1]
        with pytest.raises(
            JudgeUnreachable, match=r"the answer is not HTTP: BadStatusLine: SSH-2\.0"
        ) as caught:
            RemoteGPTRMClient(remote(port, startup_timeout=1)).wait_until_ready()
        assert f"127.0.0.1:{port}" in str(caught.value)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_batch_that_the_server_finds_too_large_is_asked_in_halves(ours: TritonJudge) -> None:
    with RemoteGPTRMClient(remote(ours.port, max_batch_size=200, max_wait_seconds=5)) as client:
        futures = [client.submit(*row(str(number))) for number in range(200)]  # it takes 128 rows at most
        found = [future.result(timeout=30) for future in futures]
    assert all(isinstance(result, Score) for result in found)


def test_a_reward_of_single_precision_that_equals_its_bar_reaches_it(ours: TritonJudge) -> None:
    """What the model declares is what bars are compared in: a server of before answers in float32."""
    with RemoteGPTRMClient(remote(ours.port)) as client:
        futures = [client.submit(*row(f"={bar}")) for bar in BARS]
        scores = [future.result(timeout=30) for future in futures]
    assert beaten(scores) == {}
    rewards = [score.reward for score in scores if isinstance(score, Score)]
    assert any(reward < bar for reward, bar in zip(rewards, BARS, strict=True))


def test_servers_that_are_not_the_same_judge_are_refused_at_the_start(
    ours: TritonJudge, tmp_path: Path
) -> None:
    with (
        triton_judge(tmp_path / "other", free_port(), "ours", "beef") as other,
        pytest.raises(ValueError, match="fingerprints are") as caught,
    ):
        RemoteGPTRMClient(remote(ours.port, other.port)).wait_until_ready()
    for part in (f"127.0.0.1:{ours.port}", f"127.0.0.1:{other.port}", "beef", FINGERPRINT):
        assert part in str(caught.value)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Our own server, behind a token."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "token").write_text(TOKEN)
    (folder / "mine.py").write_text(
        "def judge(prompts, responses, metadata):\n"
        "    return [{'reward': len(r), 'vowels': sum(c in 'aeiou' for c in r)} for r in responses]\n"
    )
    overrides = ["judge.function=mine.py:judge", f"inference.token_file={folder / 'token'}"]
    with service(folder, free_port(), *overrides) as running:
        running.wait_until_ready()
        yield running


def test_our_server_sends_components_and_a_fingerprint(served: Service, token_file: str) -> None:
    with RemoteGPTRMClient(remote(served.port, token_file=token_file)) as client:
        found = client.submit(*row("banana")).result(timeout=30)
        fingerprint = client.fingerprint
    assert found == Score(6.0, {"vowels": 3.0})
    assert isinstance(found, Score)
    assert fingerprint
    assert found.judge == fingerprint


@pytest.mark.parametrize("token", ["guessed", None])
def test_our_server_without_its_token_is_one_message_at_the_start(
    served: Service, tmp_path: Path, token: str | None
) -> None:
    settings: dict[str, Any] = {}
    if token is not None:
        (tmp_path / "token").write_text(token)
        settings["token_file"] = str(tmp_path / "token")
    began = time.monotonic()
    with pytest.raises(
        JudgeUnreachable, match=r"access token is (wrong|missing).*remote_rm\.token_file"
    ) as caught:
        RemoteGPTRMClient(remote(served.port, **settings)).wait_until_ready()
    assert f"127.0.0.1:{served.port}" in str(caught.value)
    assert "guessed" not in str(caught.value)
    assert time.monotonic() - began < 3
