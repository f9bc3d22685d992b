"""Between a client and a real server: lets answers through, or spoils every third of them.

For what a real Triton never says: rows too few or too many, another request's answer, bytes that are none.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from rs_aligner.remote.kserve import Arrays, pack_tensors, unpack_answer

HEADER = "Inference-Header-Content-Length"
Spoiler = Callable[["Answer"], "Answer | bytes"]


class Answer:
    """What came from the server: the JSON part, the outputs, and the one before it."""

    def __init__(self, body: bytes, json_length: int, before: Answer | None) -> None:
        self.body, self.json_length, self.before = body, json_length, before

    def rebuilt(self, change: Callable[[Arrays], Arrays], **header: Any) -> Answer:
        """The same answer with other outputs, and other fields beside them."""
        outputs = change(unpack_answer(self.body, self.json_length))
        tensors, data = pack_tensors(outputs)
        whole = {**json.loads(self.body[: self.json_length]), **header, "outputs": tensors}
        text = json.dumps({k: v for k, v in whole.items() if v is not None}).encode()
        return Answer(text + data, len(text), self.before)


def too_few_rows(answer: Answer) -> Answer:
    return answer.rebuilt(lambda arrays: {name: array[:-1] for name, array in arrays.items()})


def too_many_rows(answer: Answer) -> Answer:
    return answer.rebuilt(
        lambda arrays: {name: np.concatenate([array, array[:1]]) for name, array in arrays.items()}
    )


def another_requests_answer(answer: Answer) -> Answer:
    return answer.before or answer


def another_requests_rows(answer: Answer) -> Answer:
    """The same without the request's id, as a server would that mixes rows up before it answers."""
    before = answer.before
    return answer if before is None else before.rebuilt(lambda arrays: arrays, id=None)


def rows_in_another_order(answer: Answer) -> Answer:
    return answer.rebuilt(lambda arrays: {name: np.roll(array, 1, axis=0) for name, array in arrays.items()})


def another_model(answer: Answer) -> Answer:
    return answer.rebuilt(lambda arrays: arrays, model_name="sentiment")


def another_judge(answer: Answer) -> Answer:
    def change(arrays: Arrays) -> Arrays:
        column = arrays["fingerprint"].copy()
        column[:] = b"beef"
        return {**arrays, "fingerprint": column}

    return answer.rebuilt(change)


def garbage(answer: Answer) -> Answer:
    return Answer(random.Random(len(answer.body)).randbytes(len(answer.body)), answer.json_length, None)


def cut_short(answer: Answer) -> Answer:
    return Answer(answer.body[:-3], answer.json_length, None)


def not_http(answer: Answer) -> bytes:
    return b"\x00\xff" * 40


SPOILERS = [
    *(too_few_rows, too_many_rows, another_requests_answer, another_requests_rows, rows_in_another_order),
    *(another_model, another_judge, garbage, cut_short, not_http),
]


class Proxy:
    """Where it listens, what it does, how often it did."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.spoiler: Spoiler | None = None
        self.spoilt = 0
        self.requests = 0
        self.lock = threading.Lock()


@contextlib.contextmanager
def faulty_proxy(server_port: int) -> Iterator[Proxy]:
    """A proxy on a free port; `spoiler` spoils every third answer to an inference request."""
    last: list[Answer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward()

        def do_POST(self) -> None:
            self.forward()

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection("127.0.0.1", server_port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))
            response = upstream.getresponse()
            content, length = response.read(), response.getheader(HEADER)
            upstream.close()
            spoilt: Answer | bytes | None = None
            if self.path.endswith("/infer") and response.status == 200 and length is not None:
                with proxy.lock:
                    proxy.requests += 1
                    answer = Answer(content, int(length), last[-1] if last else None)
                    last[:] = [Answer(content, int(length), None)]
                    if proxy.spoiler is not None and proxy.requests % 3 == 0:
                        spoilt = proxy.spoiler(answer)
                        proxy.spoilt += 1
            if isinstance(spoilt, bytes):
                self.wfile.write(spoilt)
                return
            if isinstance(spoilt, Answer):
                content, length = spoilt.body, str(spoilt.json_length)
            self.send_response(response.status)
            self.send_header("Content-Length", str(len(content)))
            if length is not None:
                self.send_header(HEADER, length)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy = Proxy(server.server_address[1])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
