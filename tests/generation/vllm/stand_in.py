"""A stand-in for vLLM's server, in this process: it says what its seeds say, and fails as it is told.

What it does without faults is held to the real one in `test_contract.py`; `faults.py` has the others. Left
out on purpose: a model. Its tokens follow from seed and place, and its texts are empty; a canary has to be
told what it answers.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rs_aligner.generation.sampling import derive_seed
from rs_aligner.generation.vllm.canary import Continuation

MODEL, MAX_LENGTH = "policy", 512
DONE = b"data: [DONE]\n\n"  # the last event

Answer = tuple[int, Any]


class Streamed(list[Any]):
    """An answer in pieces: events, bytes as they are, and what is waited for (`threading.Event`) in between.

    At a None the connection is cut.
    """


Fault = Callable[[Answer, threading.Event], Answer | None]
"""What becomes of an answer; None where the connection is cut. The event is set when the server ends."""


def token_of(seed: int, place: int, choices: list[int]) -> int:
    """What it says at a place of a response."""
    return choices[derive_seed(seed, place) % len(choices)]


def log_prob_of(token: int) -> float:
    """Of a token, whatever came before."""
    return -1.0 - token / 1024


class StandIn:
    """What was asked of it, and how it answers.

    Attributes:
        faults: what goes wrong with the next completions, but for the trials; an Ellipsis behind the last
            lets that go on for ever.
        asked: the bodies of completions, but for the trials.
        most_at_once: of them.
        aborted: connections that were closed before their answer.
        continuations: what it answers to the canary.
    """

    def __init__(self, vocab_size: int, token: str | None) -> None:
        self.vocab_size, self.token = vocab_size, token
        self.faults: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.is_sick = self.processes_log_probs = False
        self.most_at_once = self.at_once = self.port = self.aborted = 0
        self.continuations: Sequence[Continuation] = ()
        self.ends = threading.Event()
        self.gate = threading.Event()  # completions wait for it
        self.gate.set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def complete(self, body: dict[str, Any]) -> Answer | None:
        """What it answers; None where it cuts the connection."""
        if (refusal := self._refusal(body)) is not None:
            return 400, {"error": {"message": refusal, "type": "BadRequestError", "code": 400}}
        if body.get("model") != MODEL:
            message = f"The model `{body.get('model')}` does not exist."
            return 404, {"error": {"message": message, "type": "NotFoundError", "code": 404}}
        if isinstance(body["prompt"][0], list):  # the canary
            return 200, {
                "choices": [
                    _canary_choice(index, continuation)
                    for index, continuation in enumerate(self.continuations)
                ]
            }
        answer: Answer | None = 200, self._answer(body)
        if "logit_bias" in body:  # a trial
            return answer
        with self._lock:
            self.asked.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.faults[0] if self.faults else None
            if self.faults[1:2] != [...]:
                self.faults = self.faults[1:]
        try:
            self.gate.wait(20)
            return answer if fault is None else fault(answer, self.ends)
        finally:
            with self._lock:
                self.at_once -= 1

    def _refusal(self, body: Mapping[str, Any]) -> str | None:
        ids = [int(token) for token in body.get("logit_bias", {})] + body.get("allowed_token_ids", [])
        if any(not 0 <= token < self.vocab_size for token in [*ids, *body.get("stop_token_ids", [])]):
            return "token ids contain out-of-vocab token id!"
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        if any(not 0 <= token < self.vocab_size for prompt in prompts for token in prompt):
            return "Token id is out of vocabulary"
        if body["temperature"] == 0 and body.get("n", 1) > 1:
            return "n must be 1 when using greedy sampling"
        if not 0 <= body["temperature"] <= 2:
            return "temperature must be in [0, 2]"
        if body.get("min_tokens", 0) > body["max_tokens"]:
            return "min_tokens must be less than or equal to max_tokens"
        if body["max_tokens"] > MAX_LENGTH:
            return f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={MAX_LENGTH}"
        return None

    def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        choices = [self._choice(body, index) for index in range(body.get("n", 1))]
        return {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": choices}

    def _choice(self, body: Mapping[str, Any], index: int) -> dict[str, Any]:
        allowed = body.get("allowed_token_ids") or list(range(self.vocab_size))
        ends, least = set(body.get("stop_token_ids", [])), body.get("min_tokens", 0)
        seed = 0 if body["temperature"] == 0 else body.get("seed", 0) + index
        tokens: list[int] = []
        most = min(body["max_tokens"], MAX_LENGTH - len(body["prompt"]))
        while len(tokens) < most and not (tokens and tokens[-1] in ends):
            barred = ends if len(tokens) < least else set()
            tokens.append(token_of(seed, len(tokens), [one for one in allowed if one not in barred]))
        log_probs = [0.0 if self.processes_log_probs else log_prob_of(token) for token in tokens]
        return {
            "index": index,
            "text": "",
            "logprobs": {"tokens": [""] * len(tokens), "token_logprobs": log_probs},
            "finish_reason": "stop" if tokens[-1] in ends else "length",
            "stop_reason": tokens[-1] if tokens[-1] in ends else None,
            "token_ids": tokens,
        }


def streamed(found: Any) -> Streamed:
    """An answer as vLLM streams it: the first token of each choice at once, and what follows when it ends."""
    choices = found["choices"] if isinstance(found, dict) and "choices" in found else None
    if choices is None:
        return Streamed([found, DONE])
    parts = [part for choice in choices for part in _parts(choice)]
    parts.sort(key=lambda part: part[0])
    return Streamed([*({**found, "choices": [choice]} for _, choice in parts), DONE])


def _parts(choice: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The parts of a choice, each with the number of tokens after which it is sent."""
    tokens, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if not (isinstance(tokens, list) and isinstance(log_probs, list) and len(tokens) > 1):
        return [(1, choice)]
    first, rest = (
        {**choice, "token_ids": tokens[part], "logprobs": {"token_logprobs": log_probs[part]}}
        for part in (slice(1), slice(1, None))
    )
    return [(1, {**first, "finish_reason": None, "stop_reason": None}), (len(tokens), rest)]


def _canary_choice(index: int, continuation: Continuation) -> dict[str, Any]:
    return {"index": index, "token_ids": continuation[0], "logprobs": {"token_logprobs": continuation[1]}}


@contextlib.contextmanager
def stand_in(vocab_size: int = 100, *, port: int = 0, token: str | None = None) -> Iterator[StandIn]:
    """Serve on this port, or a free one."""
    server = StandIn(vocab_size, token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self.may():
                return
            if self.path == "/health":
                self.reply(500 if server.is_sick else 200, None)
            elif self.path == "/v1/models":
                model = {"id": MODEL, "object": "model", "root": "/models/policy", "parent": None}
                adapter = {"id": "adapter", "object": "model", "root": "/a", "parent": MODEL}
                data = [adapter, {**model, "max_model_len": MAX_LENGTH}]
                self.reply(200, {"object": "list", "data": data})
            else:
                self.reply(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.may():
                answer = server.complete(body) if self.path == "/v1/completions" else (404, {})
                if answer is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif body.get("stream") and answer[0] == 200 and not isinstance(answer[1], bytes | str):
                    found = answer[1]
                    self.stream(found if isinstance(found, Streamed) else streamed(found))
                else:
                    self.reply(*answer)

        def may(self) -> bool:
            if server.token is None or self.headers.get("Authorization") == f"Bearer {server.token}":
                return True
            self.reply(401, {"error": {"message": "Unauthorized", "code": 401}})
            return False

        def reply(self, status: int, answer: Any) -> None:
            body = b"" if answer is None else answer if isinstance(answer, bytes) else _as_json(answer)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if isinstance(answer, bytes):
                    self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                server.aborted += 1

        def stream(self, items: Streamed) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for item in items:
                    if item is None:
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    if isinstance(item, threading.Event):
                        assert item.wait(20), "nobody let it go on"
                        continue
                    piece = item if isinstance(item, bytes) else b"data: %s\n\n" % _as_json(item)
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                server.aborted += 1

        def log_message(self, *_: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None: ...

    with Quiet(("127.0.0.1", port), Handler) as http:
        server.port = http.server_port
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ends.set()
            server.gate.set()
            http.shutdown()
            thread.join(5)


def _as_json(answer: Any) -> bytes:
    return json.dumps(answer).encode()
