"""What the server does to bad requests, to strangers, to judges that loop, and to what breaks under it."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.ports import free_port
from tests.reward.server.test_service import shared_memory
from tests.reward.service import Service, service

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

TOKEN = "a-secret-of-this-test"
JUDGE = """
import time

def judge(prompts, responses, metadata):
    values = []
    for response, row in zip(responses, metadata):
        while response == "loop":
            pass
        values.append({"reward": len(response) + row.get("bonus", 0), "length": len(response)})
    return values
"""


def column(*items: bytes) -> Any:
    array = np.empty((len(items), 1), dtype=object)
    array[:, 0] = items
    return array


def ask(port: int, token: str | None = None, **inputs: Any) -> dict[str, list[Any]]:
    """Ask with PyTriton's own client; outputs as lists."""
    from pytriton.client import ModelClient

    with ModelClient(f"http://127.0.0.1:{port}", "reward_model", access_token=token) as client:
        answer = client.infer_batch(**inputs)
    return {name: array[:, 0].tolist() for name, array in answer.items()}


def texts(*responses: bytes, **more: Any) -> dict[str, Any]:
    n = len(responses)
    return {
        "prompts": column(*[b"p"] * n),
        "responses": column(*responses),
        "metadata": column(*[b"{}"] * n),
        **more,
    }


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def metrics(service: Service) -> dict[str, float]:
    """The server's figures without labels, by name."""
    (port,) = re.findall(r"metrics at http://127.0.0.1:(\d+)/metrics", service.output)[-1:]
    status, text = get(int(port), "/metrics")
    assert status == 200
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, value in lines}


def write_judge(folder: Path) -> str:
    (folder / "judge.py").write_text(JUDGE)
    return "judge.function=judge.py:judge"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with a token, which merges what comes within 0.3 s."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN + "\n")
    overrides = [
        write_judge(folder),
        "judge.time_limit=1",
        "inference.token_file=token",
        "inference.max_queue_delay_microseconds=300000",
        "inference.max_request_bytes=100000",
    ]
    with service(folder, free_port(), *overrides) as running:
        running.wait_until_ready()
        yield running


def test_ids_fingerprint_and_components_come_with_every_answer(guarded: Service) -> None:
    ids = column(b"7/1", b"\xff\x00")
    answer = ask(guarded.port, TOKEN, **texts(b"abc", b"", row_ids=ids))
    assert answer["rewards"] == [3.0, 0.0]
    assert answer["row_ids"] == [b"7/1", b"\xff\x00"]
    assert answer["components"] == [b'{"length": 3.0}', b'{"length": 0.0}']
    assert answer["errors"] == [b"", b""]
    (fingerprint,) = set(answer["fingerprint"])
    assert re.fullmatch(rb"[0-9a-f]{16}", fingerprint)
    assert f"({fingerprint.decode()}, metrics at" in guarded.output
    without = ask(guarded.port, TOKEN, **texts(b"abc"))
    assert (without["row_ids"], without["fingerprint"]) == ([b""], [fingerprint])


def test_without_the_token_nothing_is_scored_but_readiness_and_metadata_are_open(guarded: Service) -> None:
    assert get(guarded.port, "/v2/models/reward_model/ready")[0] == 200
    assert get(guarded.port, "/v2/models/reward_model")[0] == 200
    for token, problem in ((None, "missing"), ("guess", "wrong")):
        with pytest.raises(Exception, match=rf"access token is {problem}: set remote_rm\.token_file"):
            ask(guarded.port, token, **texts(b"abc"))
    assert ask(guarded.port, TOKEN, **texts(b"abc"))["rewards"] == [3.0]


def test_the_token_is_in_no_command_line(guarded: Service) -> None:
    lines = [" ".join(process.cmdline()) for process in guarded.processes()]
    assert any("tritonserver" in line for line in lines)
    assert not [line for line in lines if TOKEN in line]
    assert TOKEN not in guarded.output


def test_endpoints_that_could_change_the_server_are_closed_even_with_the_token(guarded: Service) -> None:
    for path in ("/v2/repository/models/reward_model/unload", "/v2/systemsharedmemory/region/x/register"):
        connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10)
        connection.request("POST", path, b"{}", {"triton-access-token": TOKEN})
        assert connection.getresponse().status == 403
        connection.close()


def test_requests_that_travel_together_fail_and_succeed_on_their_own(guarded: Service) -> None:
    before = metrics(guarded)["nv_inference_exec_count"]
    found: dict[str, Any] = {}

    def run(name: str, token: str, inputs: dict[str, Any]) -> None:
        found[name] = ask(guarded.port, token, **inputs)

    requests = {
        "good": (TOKEN, texts(b"abc")),
        "stranger": ("guess", texts(b"abc", b"d")),
        "not UTF-8": (TOKEN, texts(b"ab\xff", b"abcd")),
        "also good": (TOKEN, texts(b"abcde")),
    }
    threads = [threading.Thread(target=run, args=(name, *request)) for name, request in requests.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert metrics(guarded)["nv_inference_exec_count"] - before < len(requests), "some travelled together"
    assert found["good"]["rewards"] == [3.0]
    assert found["also good"]["rewards"] == [5.0]
    assert found["not UTF-8"]["rewards"][1] == 4.0
    assert b"the response is not UTF-8" in found["not UTF-8"]["errors"][0]
    assert np.isnan(found["stranger"]["rewards"]).all()
    assert all(b"token is wrong" in error for error in found["stranger"]["errors"])


def test_a_row_that_cannot_be_read_fails_alone_and_says_why(guarded: Service) -> None:
    inputs = texts(b"a", b"ab", b"abc", b"abcd")
    inputs["metadata"] = column(b'{"bonus": 10}', b"{", b"[1]", b"\xfe")
    answer = ask(guarded.port, TOKEN, **inputs)
    assert answer["rewards"][0] == 11.0
    assert np.isnan(answer["rewards"][1:]).all()
    assert [error.split(b":")[0] for error in answer["errors"]] == [
        b"",
        b"the metadata is not JSON",
        b"the metadata is a list, not a JSON object",
        b"the metadata is not JSON",
    ]


def test_a_request_that_is_too_large_or_empty_is_told_so(guarded: Service) -> None:
    with pytest.raises(Exception, match=r"the server takes 100,000 \(inference\.max_request_bytes\)"):
        ask(guarded.port, TOKEN, **texts(b"a" * 100_000))
    with pytest.raises(Exception, match=r"4097.*4096|batch.size"):
        ask(guarded.port, TOKEN, **texts(*[b"a"] * 4097))
    body = b'{"inputs": [{"name": "prompts", "shape": [0, 1], "datatype": "BYTES", "data": []}]}'
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=10)
    connection.request("POST", "/v2/models/reward_model/infer", body, {"triton-access-token": TOKEN})
    response = connection.getresponse()
    assert response.status in (400, 500)
    assert b"error" in response.read()
    assert ask(guarded.port, TOKEN, **texts(b"abc"))["rewards"] == [3.0]


def test_a_row_that_loops_fails_alone(guarded: Service) -> None:
    began = time.monotonic()
    answer = ask(guarded.port, TOKEN, **texts(b"abc", b"loop", b"ab"))
    assert time.monotonic() - began < 20
    assert [answer["rewards"][i] for i in (0, 2)] == [3.0, 2.0]
    assert answer["errors"][1] == b"the judge took more than 1 s over this row (judge.time_limit)"


@pytest.mark.slow
def test_a_row_that_hangs_holds_up_no_other_request_where_there_are_several_workers(tmp_path: Path) -> None:
    overrides = [write_judge(tmp_path), "judge.time_limit=5", "judge.workers=2"]
    (tmp_path / "judge.py").write_text(JUDGE.replace("pass", f"open('{tmp_path}/loops', 'w')"))
    with service(tmp_path, free_port(), *overrides) as running:
        running.wait_until_ready()
        found: list[Any] = []
        slow = threading.Thread(target=lambda: found.append(ask(running.port, **texts(b"loop"))))
        slow.start()
        while not (tmp_path / "loops").exists():
            assert slow.is_alive()
            time.sleep(0.05)
        assert ask(running.port, **texts(b"abc", b"ab"))["rewards"] == [3.0, 2.0]
        assert slow.is_alive()
        slow.join(60)
        assert found[0]["errors"] == [b"the judge took more than 5 s over this row (judge.time_limit)"]
        figures = metrics(running)
        assert figures["judge_timed_out_rows_total"] == 1
        assert figures["judge_worker_restarts_total"] <= 1


def _of_triton(running: Service, name: str) -> psutil.Process | None:
    """The process of this name: Triton's server, or the stub that is its child."""
    with contextlib.suppress(psutil.Error):
        for process in running.processes():
            if process.name() == name and process.parent().name() != "sh":
                return process
    return None


def test_metrics_count_rows_failures_and_times(guarded: Service) -> None:
    before = metrics(guarded)
    ask(guarded.port, TOKEN, **texts(b"abc", b"\xff", b"a"))
    with pytest.raises(Exception, match="token"):
        ask(guarded.port, "guess", **texts(b"abc"))
    after = metrics(guarded)
    gained = {name: after[name] - before[name] for name in after}
    assert gained["judge_rows_total"] == 2
    assert gained["judge_refused_requests_total"] == 1
    assert gained["judge_call_seconds_count"] == 1
    assert 0 < gained["judge_call_seconds_sum"] < 5
    assert after["judge_failed_rows_total"] >= 0
    assert gained["nv_inference_request_success"] >= 1


def test_another_address_than_loopback_needs_a_token(tmp_path: Path) -> None:
    overrides = [write_judge(tmp_path), "inference.host=0.0.0.0"]
    with service(tmp_path, free_port(), *overrides) as running:
        assert running.process.wait(timeout=30) == 2
        assert running.output.startswith("error: inference.host is 0.0.0.0: other machines can reach it")
        assert "RS_ALIGNER_JUDGE_TOKEN" in running.output
        assert "Traceback" not in running.output
    (tmp_path / "token").write_text(TOKEN)
    with service(tmp_path, free_port(), *overrides, "inference.token_file=token") as running:
        running.wait_until_ready()
        assert ask(running.port, TOKEN, **texts(b"abc"))["rewards"] == [3.0]


@pytest.mark.parametrize("name", ["triton_python_backend_stub", "tritonserver"])
def test_a_process_of_triton_that_dies_is_noticed_and_started_again(tmp_path: Path, name: str) -> None:
    with service(tmp_path, free_port(), write_judge(tmp_path)) as running:
        running.wait_until_ready()
        assert ask(running.port, **texts(b"abc"))["rewards"] == [3.0]
        (victim,) = [process for process in running.processes() if name.startswith(process.name())]
        victim.kill()
        deadline = time.monotonic() + 60
        while running.output.count("ready at") < 2:
            assert time.monotonic() < deadline, running.output
            assert running.process.poll() is None, running.output
            time.sleep(0.1)
        assert "starting Triton again" in running.output
        assert ask(running.port, **texts(b"abcd"))["rewards"] == [4.0]
        assert metrics(running)["judge_restarts_total"] == 1
        assert len([p for p in running.processes() if p.name() == "tritonserver"]) == 1
        running.process.terminate()
        assert running.process.wait(timeout=10) == 0
        assert list(running.scratch.iterdir()) == []
    assert shared_memory(running.process.pid) == []


@pytest.mark.parametrize("name", ["triton_python_backend_stub", "tritonserver"])
def test_a_process_of_triton_that_dies_in_the_start_is_noticed_at_once(tmp_path: Path, name: str) -> None:
    with service(tmp_path, free_port(), write_judge(tmp_path)) as running:
        deadline = time.monotonic() + 30
        while (victim := _of_triton(running, name)) is None:
            assert time.monotonic() < deadline, running.output
        victim.kill()
        running.wait_until_ready(timeout=40)  # PyTriton alone would wait for 120 s, and then give up
        what = "tritonserver" if name == "tritonserver" else "a process of Triton's Python backend"
        assert f"{what} ended before it was ready" in running.output
        assert running.output.count("starting Triton again") == 1
        assert ask(running.port, **texts(b"abcd"))["rewards"] == [4.0]
        assert metrics(running)["judge_restarts_total"] == 1
        running.process.terminate()
        assert running.process.wait(timeout=10) == 0
        assert list(running.scratch.iterdir()) == []
    assert shared_memory(running.process.pid) == []


def test_a_port_that_is_taken_while_the_judge_loads_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "taking.py").write_text(
        f"import socket\ntaken = socket.create_server(('127.0.0.1', {port}))\n"
        "def judge(prompts, responses, metadata):\n    return [0.0] * len(responses)\n"
    )
    with service(tmp_path, port, "judge.function=taking.py:judge") as running:
        assert running.process.wait(timeout=50) == 2
        told = running.output.splitlines()[-1]
        assert told.startswith(
            f"error: cannot serve at 127.0.0.1:{port}: Address already in use; set inference.port"
        )
        assert "Traceback" not in running.output


def test_what_a_killed_server_left_behind_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with service(tmp_path, free_port(), write_judge(tmp_path)) as killed:
        killed.wait_until_ready()
        family = killed.processes()
        killed.process.kill()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        (left,) = killed.scratch.iterdir()
        # The next one works in another folder for temporary files; here it is to find this one.
        overrides = [write_judge(tmp_path), "inference.metrics_port=null"]
        with service(tmp_path, free_port(), *overrides, scratch=killed.scratch) as running:
            running.wait_until_ready()
            assert not left.exists()
            assert len(list(killed.scratch.iterdir())) == 1
            assert shared_memory(killed.process.pid) == []
            assert "metrics" not in running.output


def test_a_port_that_cannot_show_metrics_is_one_clear_message(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with service(
            tmp_path, free_port(), "judge.name=exact_answer", f"inference.metrics_port={port}"
        ) as running:
            assert running.process.wait(timeout=30) == 2
            assert f"cannot show metrics at 127.0.0.1:{port}" in running.output


@pytest.mark.parametrize("rows_between", [0, 1])
def test_a_triton_that_breaks_again_and_again_ends_the_server_unless_it_scores_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_between: int
) -> None:
    from rs_aligner.config import ServeRewardConfig
    from rs_aligner.reward.judges.functions import FunctionJudge
    from rs_aligner.reward.server import serve as server
    from rs_aligner.reward.server.scorer import Scorer

    starts = 0
    scorer = Scorer(FunctionJudge(lambda p, r, m: [0.0] * len(r), "abc"), 64)

    @contextlib.contextmanager
    def serving(*_: Any) -> Iterator[None]:
        nonlocal starts
        starts += 1
        if starts == 20:
            raise RuntimeError("enough of it")
        yield None

    def breaks(*_: Any) -> str:
        scorer.statistics.num_rows += rows_between
        return "tritonserver ended by itself"

    monkeypatch.setattr(server, "serving", serving)
    monkeypatch.setattr(server, "_watch", breaks)
    config = ServeRewardConfig.model_validate(
        {"judge": {"name": "length"}, "inference": {"metrics_port": None}}
    )
    ended = "enough of it" if rows_between else "the 6th time with no row scored between"
    with contextlib.ExitStack() as stack, pytest.raises(RuntimeError, match=ended):
        server._run(config, "127.0.0.1", scorer, "abc", tmp_path, stack)
    assert starts == (20 if rows_between else 6)
    assert scorer.statistics.num_restarts == starts - 1
