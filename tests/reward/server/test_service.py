"""The real thing: `serve_reward.py` as a process of its own, asked by our client and by a plain one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rs_aligner.address import Address
from rs_aligner.config import EndpointConfig, RemoteRMConfig
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.transport import Conversation
from rs_aligner.remote.triton import TritonConnection
from rs_aligner.reward.client import JudgeUnreachable, RemoteGPTRMClient
from rs_aligner.rollout import Score, ScoreFailure
from tests.bars import BARS, beaten
from tests.ports import free_port
from tests.reward.rows import row
from tests.reward.service import JUDGE, Service, service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WORDS = ["<pad>", "a", "bb", "ccc"]


def remote(port: int, name: str = "reward_model", **settings: Any) -> RemoteRMConfig:
    """Of a client that drops what fails, unless the settings say otherwise."""
    endpoint = EndpointConfig(name=name, ip="127.0.0.1", port=port)
    return RemoteRMConfig(reward_model=endpoint, **{"on_failure": "drop", **settings})


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer of four words; 0 is padding and a special token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    model.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("judge")
    (folder / "length.py").write_text(JUDGE)
    tokenizer = save_tokenizer(folder / "tokenizer")
    overrides = [
        "judge.function=length.py:judge",
        f"tokenizer={tokenizer}",
        "inference.inference_micro_batch_size=4",
        f"log_dir={folder}",
    ]
    scratch = Path(tempfile.mkdtemp(prefix="rs_"))
    (scratch / "rs_judge_foo").mkdir()  # a stranger's, which is to trouble nobody
    with service(folder, free_port(), *overrides, scratch=scratch) as running:
        running.wait_until_ready()
        yield running


def test_the_ready_line_tells_the_address_and_little_else_is_printed(served: Service) -> None:
    assert f"judge reward_model ready at http://127.0.0.1:{served.port}" in served.output
    assert len(served.output.splitlines()) <= 2


def test_nobody_else_can_read_prompts_and_answers(served: Service) -> None:
    with RemoteGPTRMClient(remote(served.port)) as client:
        assert client.submit(*row("abc")).result(timeout=30) == Score(3.0)
    mapped = {line for process in served.processes() for line in shared_memory_of(process)}
    assert any(path.startswith(f"/dev/shm/pytrtion{served.process.pid}-") for path in mapped)  # Triton's
    assert any(path.startswith("/dev/shm/psm_") for path in mapped)  # PyTriton's
    (scratch,) = served.scratch.glob(f"rs_judge_{served.process.pid}_*")
    for path in (*mapped, scratch, served.log.parent / "triton.log"):
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0, path


def test_a_strangers_scratch_folder_is_let_alone(served: Service) -> None:
    assert (served.scratch / "rs_judge_foo").is_dir()


def test_only_loopback_is_listened_to(served: Service) -> None:
    connections = [c for process in served.processes() for c in process.net_connections("inet")]
    listening = {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    assert served.port in {port for _, port in listening}
    assert len(listening) == 3  # the judge, its figures, and Triton's


def test_text_mode_scores_each_row_with_its_metadata(served: Service) -> None:
    rows = [row("x" * i, bonus=100 * (i % 2)) for i in range(150)]
    with RemoteGPTRMClient(remote(served.port, max_batch_size=16)) as client:
        futures = [client.submit(*pair) for pair in rows]
        results = [future.result(timeout=30) for future in futures]
    assert results == [Score(float(i + 100 * (i % 2))) for i in range(150)]


def test_a_reward_that_equals_its_bar_reaches_it(served: Service) -> None:
    rows = [row("", bonus=bar) for bar in BARS]
    with RemoteGPTRMClient(remote(served.port)) as client:
        futures = [client.submit(*pair) for pair in rows]
        scores = [future.result(timeout=30) for future in futures]
    assert beaten(scores) == {}
    assert scores == [Score(bar) for bar in BARS]


def test_token_mode_decodes_the_sequence_for_a_text_judge(served: Service) -> None:
    with RemoteGPTRMClient(remote(served.port, mode="tokens")) as client:
        prompt, rollout = row(tokens=0)  # tokens 1, 2, 3
        assert client.submit(prompt, rollout).result(timeout=30) == Score(float(len("a bb ccc")))


def test_rows_without_a_score_are_failures_and_their_neighbours_keep_theirs(served: Service) -> None:
    with RemoteGPTRMClient(remote(served.port)) as client:
        futures = [client.submit(*row(text)) for text in ("abc", "nan", "raise", "a")]
        results = [future.result(timeout=30) for future in futures]
    assert [results[0], results[3]] == [Score(3.0), Score(1.0)]
    assert results[1] == ScoreFailure("the judge's reward is nan, not a finite number")
    assert results[2] == ScoreFailure("the judge raised KeyError: 'this row is bad'")


def test_a_plain_client_of_nemo_aligners_contract_gets_rewards(served: Service) -> None:
    from pytriton.client import ModelClient

    tokens = np.array([[1, 2, 0, 0], [3, 0, 0, 0]], dtype=np.int64)
    lengths = np.array([[2], [1]], dtype=np.int64)
    sentences = np.array([[b"four"]], dtype=object)
    with ModelClient(f"http://127.0.0.1:{served.port}", "reward_model") as client:
        rewards = client.infer_batch(tokens=tokens, sequence_lengths=lengths)["rewards"]
        of_sentence = client.infer_batch(sentences=sentences)["rewards"]
    assert rewards.dtype == np.float64
    np.testing.assert_array_equal(rewards, [[4.0], [3.0]])
    np.testing.assert_array_equal(of_sentence, [[4.0]])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"prompts": np.array([[b"x"]], dtype=object)},
            "a request needs prompts and responses",
        ),
        ({"tokens": np.ones((1, 3), np.int64), "sequence_lengths": np.array([[4]])}, r"must be in \[0, 3\]"),
        ({"tokens": np.ones((1, 3), np.int32), "sequence_lengths": np.array([[3]])}, "INT32"),
    ],
)
def test_a_malformed_request_is_answered_with_what_is_wrong(
    served: Service, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(TransportError, match=message):
        TritonConnection(Address("127.0.0.1", served.port), "reward_model").infer(inputs, timeout=20)


def test_a_refusal_is_one_line_without_the_servers_code(served: Service) -> None:
    inputs = [{"name": "prompts", "shape": [1, 1], "datatype": "BYTES", "data": ["x"]}]
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/reward_model/infer", json.dumps({"inputs": inputs}))
        answer = json.loads(connection.getresponse().read())
    assert answer == {
        "error": "a request needs prompts and responses (with metadata), or tokens and sequence_lengths, or "
        "sentences; this one has prompts"
    }


def test_another_models_name_is_one_clear_message(served: Service) -> None:
    with pytest.raises(
        JudgeUnreachable, match=r"the server there is called judge:reward_model.*reward_model\.ip"
    ):
        RemoteGPTRMClient(remote(served.port, name="other", startup_timeout=1)).wait_until_ready()


def test_a_port_in_use_is_one_clear_message(served: Service, tmp_path: Path) -> None:
    with service(tmp_path, served.port, "judge.name=exact_answer") as second:
        assert second.process.wait(timeout=30) == 2
        assert f"cannot serve at 127.0.0.1:{served.port}: Address already in use" in second.output
        assert "inference.port" in second.output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judge.function=absent.py:judge"], "absent.py"),
        (["judge.name=exact_answer", "inference.hots=127.0.0.1"], "inference.host"),
        (["judge.name=exact_answer", "judge.kwargs={key: a}"], "unexpected keyword argument 'key'"),
    ],
)
def test_a_config_that_cannot_work_ends_in_seconds_with_one_message(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with service(tmp_path, free_port(), *overrides) as running:
        assert running.process.wait(timeout=30) == 2
        assert message in running.output
        assert "Traceback" not in running.output


@pytest.mark.parametrize(
    ("number", "host", "shown"), [(signal.SIGTERM, "127.0.0.1", "127.0.0.1"), (signal.SIGINT, "::1", "[::1]")]
)
def test_a_signal_ends_the_server_after_what_is_in_flight_and_nothing_stays(
    tmp_path: Path, number: signal.Signals, host: str, shown: str
) -> None:
    (tmp_path / "length.py").write_text(JUDGE)
    hosts = [f"inference.host={host}", f"inference.metrics_host={host}"]
    with service(tmp_path, free_port(), "judge.function=length.py:judge", *hosts) as running:
        running.wait_until_ready()
        (figures,) = re.findall(r"metrics at (\S+)/metrics", running.output)
        assert f"ready at http://{shown}:{running.port}" in running.output
        assert figures.startswith(f"http://{shown}:")
        told = Conversation(Address.parse(figures)).exchange("GET", "/metrics", 10)
        assert b"judge_rows_total 0" in told.body
        family = running.processes()
        assert shared_memory(running.process.pid)
        assert any("tritonserver" in process.name() for process in family)
        asked = RemoteRMConfig(endpoints=(f"{shown}:{running.port}",), max_wait_seconds=0)  # type: ignore[arg-type]  # as people write it
        with RemoteGPTRMClient(asked) as client:
            future = client.submit(*row("sleep 2"))
            running.wait_until_at_work()
            start = time.monotonic()
            running.process.send_signal(number)
            assert future.result(timeout=20) == Score(float(len("sleep 2")))
        assert running.process.wait(timeout=20) == 0
        assert time.monotonic() - start < 10
        _, alive = psutil.wait_procs(family, timeout=3)
        assert alive == []
        assert "Traceback" not in running.output
        assert list(running.scratch.iterdir()) == []
        assert shared_memory(running.process.pid) == []


def test_a_judge_that_hangs_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(JUDGE)
    with service(tmp_path, free_port(), "judge.function=length.py:judge") as running:
        running.wait_until_ready()
        family = running.processes()
        with RemoteGPTRMClient(remote(running.port, max_wait_seconds=0)) as client:
            future = client.submit(*row("sleep 100"))
            running.wait_until_at_work()
            running.process.terminate()
            assert running.process.wait(timeout=10) == 0
            assert isinstance(future.result(timeout=10), ScoreFailure)
        _, alive = psutil.wait_procs(family, timeout=3)
        assert alive == []
        assert list(running.scratch.iterdir()) == []


def test_a_killed_server_fails_what_was_asked_and_takes_its_processes_along(tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(JUDGE)
    with service(tmp_path, free_port(), "judge.function=length.py:judge") as running:
        running.wait_until_ready()
        family = running.processes()
        with RemoteGPTRMClient(remote(running.port, max_wait_seconds=0, request_timeout=20)) as client:
            in_flight = client.submit(*row("sleep 30"))
            running.wait_until_at_work()
            running.process.kill()
            assert isinstance(in_flight.result(timeout=30), ScoreFailure)
            _, alive = psutil.wait_procs(family, timeout=20)
            assert alive == []
            afterwards = client.submit(*row("abc")).result(timeout=30)
        assert isinstance(afterwards, ScoreFailure)
        assert "refused" in afterwards.reason


def test_tokens_are_refused_where_no_tokenizer_is_set(tmp_path: Path) -> None:
    with service(tmp_path, free_port(), "judge.name=exact_answer") as running:
        running.wait_until_ready()
        tokens = {"tokens": np.ones((1, 3), np.int64), "sequence_lengths": np.array([[3]])}
        with pytest.raises(TransportError, match="tokenizer=<folder"):
            TritonConnection(Address("127.0.0.1", running.port), "reward_model").infer(tokens, timeout=20)


def shared_memory_of(process: psutil.Process) -> set[str]:
    """Paths of the shared memory that a process has mapped."""
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/\S+$", maps, re.MULTILINE))


def shared_memory(pid: int) -> list[str]:
    """Names of the shared memory regions of a server's Triton."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"pytrtion{pid}-")]
