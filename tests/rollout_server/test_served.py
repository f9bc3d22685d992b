"""`rs-aligner serve-rollouts` with a real vLLM: each route without the token and with it, and its end."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rs_aligner.address import Address
from rs_aligner.generation.vllm.connection import WEIGHTS_HEADER, VllmConnection
from rs_aligner.generation.vllm.folder import MARKER
from rs_aligner.remote.errors import TransportError
from rs_aligner.rollout_server.inside.rs_aligner_guard import PLAIN
from tests.vllm_server import STORIES, Running, serve_rollouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
TOKEN = "a-secret-of-this-test"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
FOLDERS = {"/collective_rpc", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
DEVELOPMENT = {
    "/collective_rpc",
    "/pause",
    "/sleep",
    "/server_info",
    "/update_weights",
    "/reset_prefix_cache",
}


@pytest.fixture(scope="module")
def served(vllm_python: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With a token and adapters, started in a folder that has the same weights below it, marked."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(test_data / STORIES, folder / "weights" / "step_1")
    (folder / "weights" / "step_1" / MARKER).write_text("word\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    settings = ("inference.token_file=token", "lora_rank=8")
    with serve_rollouts(vllm_python, test_data / STORIES, folder, *settings) as running:
        yield running


@pytest.fixture(scope="module")
def routes(served: Running) -> set[str]:
    """All paths of vLLM's application, which it lists when it starts."""
    log = (served.log.parent / "vllm.log").read_text()
    found = set(re.findall(r"Route: (/\S*?),", log))
    assert len(found) > 40
    assert found > DEVELOPMENT | FOLDERS | {path for _, path in PLAIN} - {"/metrics"}  # a mount, not a route
    return {re.sub(r"\{[^}]*\}", "some", path) for path in found} | {"/metrics"}


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one that has ended may wait for a while until somebody asks how."""
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_every_route_wants_the_token(served: Running, routes: set[str]) -> None:
    for path in sorted(routes | {"/", "/rs_aligner/about", "/rs_aligner/marker"}):
        for method in METHODS:
            for token in (None, "another"):
                answer = served.ask(method, path, {}, token=token)
                assert answer.status == 401, (method, path)
                assert method == "HEAD" or b"rs_aligner's guard: the token" in answer.body
    assert served.ask("GET", "/health", token=TOKEN).status == 200


def test_with_the_token_only_routes_that_rollouts_need_reach_vllm(served: Running, routes: set[str]) -> None:
    for path in sorted(routes - FOLDERS):
        for method in METHODS:
            if (method, path) not in PLAIN:
                answer = served.ask(method, path, {}, token=TOKEN)
                assert answer.status == 404, (method, path)
                assert method == "HEAD" or b"is no route that rollouts need" in answer.body
    for path in ("/health", "/v1/models", "/version", "/metrics"):
        assert served.ask("GET", path, token=TOKEN).status == 200


def test_methods_of_the_workers_and_folders_elsewhere_do_not(served: Running, test_data: Path) -> None:
    def refused(path: str, **body: object) -> bool:
        answer = served.ask("POST", path, body, token=TOKEN)
        return answer.status in (403, 404) and b"rs_aligner's guard" in answer.body

    elsewhere = str(test_data / STORIES)
    assert refused("/collective_rpc", method="save_sharded_state", kwargs={"path": elsewhere})
    assert refused("/collective_rpc", method="reload_weights", kwargs={"weights_path": elsewhere})
    assert refused("/collective_rpc", method="reload_weights")
    assert refused("/v1/load_lora_adapter", lora_name="a", lora_path=elsewhere)
    assert served.ask("GET", "/health", token=TOKEN).status == 200


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_websocket_is_refused(served: Running, token: str | None) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = ["GET /v1/realtime HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as line:
        line.sendall("\r\n".join([*lines, "", ""]).encode())
        assert line.recv(100).startswith(b"HTTP/1.1 403")


def test_rollouts_are_sampled_and_new_weights_taken(served: Running) -> None:
    body = {"model": "policy", "prompt": [1], "max_tokens": 8, "temperature": 0, "return_token_ids": True}

    def sampled() -> list[int]:
        answer = served.ask("POST", "/v1/completions", body, token=TOKEN)
        assert answer.status == 200, answer.body
        return list(json.loads(answer.body)["choices"][0]["token_ids"])

    before, folder = sampled(), served.log.parent / "weights" / "step_1"
    seen = served.ask("GET", f"/rs_aligner/marker?folder={folder}", token=TOKEN)
    assert (seen.status, seen.body, seen.headers.get(WEIGHTS_HEADER)) == (200, b"word", None)
    for path in ("/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"):
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        answer = served.ask("POST", path, reload if path == "/collective_rpc" else None, token=TOKEN)
        assert answer.status == 200, answer.body
    assert sampled() == before
    about = served.ask("GET", "/rs_aligner/about", token=TOKEN)
    assert about.headers[WEIGHTS_HEADER] == "word"
    told = json.loads(about.body)
    assert (told["vocab_size"], told["dtype"], told["reloads"], told["lora_rank"]) == (
        512,
        "float32",
        True,
        8,
    )


def test_a_stream_says_no_word_of_its_weights_once_others_were_taken(served: Running) -> None:
    """The same folder again: what is being sampled began before."""
    link = VllmConnection(Address.parse(served.url), TOKEN)
    body = {"model": "policy", "prompt": [1], "n": 8, "max_tokens": 400, "ignore_eos": True, "stream": True}
    words = []
    with link.stream("/v1/completions", 60, body) as events:
        words.append(link.weights)
        for _ in events:
            words.append(link.weights)
            if len(words) == 2:
                folder = served.log.parent / "weights" / "step_1"
                reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
                assert served.ask("POST", "/collective_rpc", reload, token=TOKEN).status == 200
    assert words[:2] == ["word", "word"]
    assert words[-1] == "(others since it began)"
    assert served.ask("GET", "/health", token=TOKEN).headers[WEIGHTS_HEADER] == "word"


def test_no_command_line_and_no_log_has_the_token(served: Running) -> None:
    processes = family(psutil.Process(served.process.pid))
    assert len(processes) >= 3
    for process in processes:
        assert TOKEN.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    for log in served.log.parent.glob("*.log"):
        assert TOKEN not in log.read_text(errors="replace")


def test_ctrl_c_breaks_off_what_is_under_way_and_ends_vllm_with_all_its_processes(served: Running) -> None:
    """The last test of this server, which ends by itself: one that was killed would not have said so."""
    processes = family(psutil.Process(served.process.pid))
    link = VllmConnection(Address.parse(served.url), TOKEN)
    body = {"model": "policy", "prompt": [1], "n": 64, "max_tokens": 500, "ignore_eos": True}
    body |= {"stream": True, "stream_interval": 1}

    def ask_and_end() -> None:
        with link.stream("/v1/completions", 60, body) as events:
            for number, _ in enumerate(events):
                if number == 0:
                    served.process.send_signal(signal.SIGINT)

    with pytest.raises(TransportError):
        ask_and_end()
    assert served.process.wait(40) == 0
    assert alive(processes) == []
    said = (served.log.parent / "vllm.log").read_text()
    assert "timeout graceful shutdown exceeded" in said
    assert "Application shutdown complete" in said


def test_a_vllm_whose_engine_dies_is_told_of_and_ended(
    vllm_python: Path, test_data: Path, tmp_path: Path
) -> None:
    with serve_rollouts(vllm_python, test_data / STORIES, tmp_path) as running:
        _, vllm, *below = family(psutil.Process(running.process.pid))
        below[-1].kill()
        assert running.process.wait(60) == 1
        assert f"error: vLLM at http://127.0.0.1:{running.port} serves no more: " in running.log.read_text()
        assert alive([vllm, *below]) == []
