"""A server of chat completions that does what a test says: right answers, lies, delays, half answers.

Left alone it answers as vLLM does, which `test_contract.py` holds it to; its model is none, and says
the same of the same messages.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.remote.tls import serving

MODEL = "stories"
OWNER = "vllm"
MOST_TOKENS, MOST_LOGPROBS = 512, 20
_TOKENS = re.compile(r"</?s>|\w+|\s|.", re.DOTALL)
_LIKELY = ("Once", "A", "B", "T", '"', *"CDEFGHIJKLMNOPQ")
Request = Mapping[str, Any]


@dataclass
class Reply:
    """An answer.

    Attributes:
        text: of the message; None for a message without one.
        finish_reason: why it ended.
        message: further fields of the message.
        tops: for each token of the answer the probabilities of what could have been there, by token.
        status, headers, body: of the HTTP answer; a body replaces all of the above.
        is_cut: the connection ends in the middle of the answer.
        is_gone: the connection ends without an answer.
        waits_for: it is not sent before this is set.
    """

    text: str | None = "7"
    finish_reason: str | None = "stop"
    message: Mapping[str, Any] = field(default_factory=dict)
    tops: list[dict[str, float]] | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    is_cut: bool = False
    is_gone: bool = False
    waits_for: threading.Event | threading.Barrier | None = None


class StandIn:
    """A running server.

    Attributes:
        url: what `judge.kwargs.url` is.
        token: what it wants to see; None for none.
        reply: what it answers; None for what a real server would.
        asked: the requests for completions so far, but for the trial of a judge that starts.
        headers: of the last request.
        is_gone: it does not answer anybody.
        is_away: a gateway says that it is not there.
    """

    def __init__(self, token: str | None) -> None:
        self.url, self.token = "", token
        self.reply: Callable[[Request], Reply | None] | None = None
        self.asked: list[Request] = []
        self.headers: dict[str, str] = {}
        self.is_gone = self.is_away = False
        self.num_turned_away = 0
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    def answers(self, *replies: Reply) -> None:
        """Answer so, one reply after the other, and the last one from then on."""
        left = list(replies)

        def next_one(_: Request) -> Reply:
            with self.lock:
                return left.pop(0) if len(left) > 1 else left[0]

        self.reply = next_one

    def texts(self) -> list[str]:
        """What it was asked, the last message of each request."""
        return [request["messages"][-1]["content"] for request in self.asked]


@contextlib.contextmanager
def stand_in(token: str | None = None, host: str = "127.0.0.1") -> Iterator[StandIn]:
    """Serve at `/v1` of a free port."""
    server = StandIn(token)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._turned_away():
                self._send(200, {"object": "list", "data": [{"id": MODEL, "owned_by": OWNER}]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self._turned_away():
                return
            request = json.loads(body)
            server.headers = {name.lower(): value for name, value in self.headers.items()}
            with server.lock:
                server.asked.append(request)
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            reply = (server.reply and server.reply(request)) or None
            if reply is not None and reply.waits_for is not None:
                reply.waits_for.wait(20)
            with server.lock:
                server.in_flight -= 1
            self._answer(request, reply)

        def _turned_away(self) -> bool:
            if server.is_gone:
                server.num_turned_away += 1
                self.close_connection = True
            elif server.is_away:
                server.num_turned_away += 1
                self._send(502, b"<html><title>502 Bad Gateway</title></html>")
            elif not self.path.startswith("/v1/"):
                self._send(404, {"detail": "Not Found"})
            elif server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                self._send(401, {"error": "Unauthorized"})
            else:
                return False
            return True

        def _answer(self, request: Request, reply: Reply | None) -> None:
            if reply is None and (problem := refusal(request)) is not None:
                status, message = problem
                self._send(status, {"error": {"message": message, "code": status}})
                return
            reply = reply or babble(request)
            if reply.is_gone:
                self.close_connection = True
            elif reply.body is not None:
                self._send(reply.status, reply.body, reply.headers, is_cut=reply.is_cut)
            else:
                self._send(reply.status, completion(request, reply), reply.headers, is_cut=reply.is_cut)

        def _send(
            self, status: int, said: Any, headers: Mapping[str, str] | None = None, *, is_cut: bool = False
        ) -> None:
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may be gone
                self.wfile.write(body[: len(body) // 2] if is_cut else body)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler, None, host) as port:
        server.url = f"http://127.0.0.1:{port}/v1"
        yield server


def tokens_of(text: str) -> list[str]:
    """As a tokenizer would, its special tokens whole."""
    return _TOKENS.findall(text)


def prompt_tokens(request: Request) -> int:
    """Of all messages."""
    return sum(len(tokens_of(message["content"])) for message in request["messages"])


def refusal(request: Request) -> tuple[int, str] | None:
    """Why a real server would not answer."""
    if request["model"] != MODEL:
        return 404, f"The model `{request['model']}` does not exist."
    if request.get("top_logprobs", 0) > MOST_LOGPROBS:
        return 400, f"Requested sample logprobs of {request['top_logprobs']}, greater than {MOST_LOGPROBS}"
    if prompt_tokens(request) + request.get("max_tokens", 1) > MOST_TOKENS:
        return 400, f"This model's maximum context length is {MOST_TOKENS} tokens."
    return None


def babble(request: Request) -> Reply:
    """What no model says, decided by the messages."""
    number = hashlib.blake2b(json.dumps(request["messages"]).encode()).digest()[0]
    choices = request.get("structured_outputs", {}).get("choice")
    if choices:
        return Reply(choices[number % len(choices)])
    most = request.get("max_tokens", 16)
    text = "".join(tokens_of("Once upon a time there was a little girl. " * 20)[:most])
    likely = ("Once", "B", "A", *_LIKELY[3:]) if number % 2 else _LIKELY
    tops = [{token: 0.5**place for place, token in enumerate(likely, start=1)} for _ in tokens_of(text)]
    return Reply(text, "length", tops=tops)


def completion(request: Request, reply: Reply) -> dict[str, Any]:
    """A reply as a body."""
    tokens = tokens_of(reply.text or "")
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": reply.text, "refusal": None, **reply.message},
        "finish_reason": reply.finish_reason,
        "logprobs": None,
    }
    if request.get("logprobs") and reply.tops is not None:
        number = request["top_logprobs"]
        choice["logprobs"] = {
            "content": [_token(*one, number) for one in zip(tokens, reply.tops, strict=True)]
        }
    asked, said = prompt_tokens(request), max(len(tokens), 1)
    usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
    return {"object": "chat.completion", "model": request["model"], "choices": [choice], "usage": usage}


def _token(text: str, top: Mapping[str, float], number: int) -> dict[str, Any]:
    likely = sorted(top.items(), key=lambda item: -item[1])[:number]
    return {
        "token": text,
        "logprob": _log(top.get(text, 0.0)),
        "top_logprobs": [{"token": one, "logprob": _log(chance)} for one, chance in likely],
    }


def _log(chance: float) -> float:
    return math.log(chance) if chance else -9999.0
