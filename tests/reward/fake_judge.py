"""A stand-in for Triton's HTTP endpoint that answers, delays or breaks as a test wants. Ready in no time."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]


def rewards(values: list[float], datatype: str = "FP32") -> Answer:
    """Rewards as JSON, as a server without the binary extension sends them."""
    tensor = {"name": "rewards", "datatype": datatype, "shape": [len(values), 1], "data": values}
    return 200, {"outputs": [tensor]}


class FakeJudge:
    """What was asked of it, and how many requests were under way at once."""

    def __init__(self, answer: Callable[[int], Answer], inputs: list[str]) -> None:
        self.answer = answer
        self.inputs = inputs
        self.batches: list[int] = []
        self.names: list[str] = []
        self.most_at_once = 0
        self.port = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def infer(self, header: dict[str, Any]) -> Answer:
        num_rows = header["inputs"][0]["shape"][0]
        with self._lock:
            self.batches.append(num_rows)
            self.names = [tensor["name"] for tensor in header["inputs"]]
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.answer(num_rows)
        finally:
            with self._lock:
                self._at_once -= 1


@contextlib.contextmanager
def fake_judge(
    answer: Callable[[int], Answer],
    inputs: tuple[str, ...] = ("prompts", "responses", "metadata"),
    port: int = 0,
) -> Iterator[FakeJudge]:
    """Serve `answer`, called with the number of rows, on this port, or a free one."""
    judge = FakeJudge(answer, list(inputs))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/reward_model/ready"):
                self.reply(200, {})
            elif self.path.endswith("/reward_model"):
                self.reply(200, {"inputs": [{"name": name} for name in judge.inputs]})
            else:
                self.reply(400, {"error": "no such model"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v2/repository/index":
                self.reply(200, [{"name": "reward_model"}])
            else:
                self.reply(
                    *judge.infer(json.loads(body[: int(self.headers["Inference-Header-Content-Length"])]))
                )

        def reply(self, status: int, answer: Any) -> None:
            body = json.dumps(answer).encode()
            with contextlib.suppress(OSError):  # the client may have gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    judge.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
