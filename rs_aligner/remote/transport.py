"""One HTTP conversation with a Triton server: is the model ready, what does it take, answer this.

Speaks the KServe v2 protocol (its bodies are in `kserve`) over the standard library's HTTP client. PyTriton's
own client is left out on purpose: it is built on gevent, which does not mix with threads, and when its server
is killed it waits out its whole timeout, where a plain socket is told at once. A connection is made for each
request: next to a batch of rows it costs nothing, and none can go stale.

Whatever a server sends becomes arrays or a `TransportError`, and takes neither more time nor more memory than
it was given. Whether to ask again is not decided here (`retry`), nor whether arrays are scores (`protocol`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from rs_aligner.remote.kserve import Arrays, json_object, pack_request, unpack_answer

_HEADER_LENGTH = "Inference-Header-Content-Length"
# PyTriton restricts inference to requests with this header (`TritonSecurityConfig`).
TOKEN_HEADER = "triton-access-token"
# An answer has some bytes a row. What goes on beyond this is no answer.
MAX_ANSWER_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**20

Kind = Literal["unreachable", "timeout", "refused", "unreadable"]


class TransportError(Exception):
    """A request without a usable answer; the message says why.

    Attributes:
        kind: `unreachable` (no connection, or it was cut), `timeout`, `refused` (another HTTP status than
            200) or `unreadable` (an answer that is none).
        status: the HTTP status, where there is one.
    """

    def __init__(self, message: str, kind: Kind, status: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class BadAnswer(ValueError):
    """An answer that cannot be trusted in any row; the message says why."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a model takes and gives: the names of its inputs and outputs."""

    inputs: frozenset[str]
    outputs: frozenset[str]


class TritonConnection:
    """Requests to one model, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        host: name or address of the server.
        port: its HTTP port.
        model: the model's name there.
        token: what a server with restricted inference wants to see; None for none.
    """

    def __init__(self, host: str, port: int, model: str, token: str | None = None) -> None:
        self._host = host
        self._port = port
        self._model = model
        self._token = token
        self._path = f"/v2/models/{quote(model, safe='')}"
        self._open: socket.socket | None = None
        self._aborted = False

    def problem(self, timeout: float) -> str | None:
        """Ask whether the model is ready.

        Returns:
            None if it is, else what is wrong, with the models that are there as far as the server tells.
        """
        try:
            status, _, body = self._exchange("GET", f"{self._path}/ready", timeout)
        except TransportError as error:
            return str(error)
        if status == 200:
            return None
        return f"the server answers HTTP {status}: {_error_text(body)}{self._others(timeout)}"

    def offer(self, timeout: float) -> Offer:
        """What the model declares to take and to give.

        Raises:
            TransportError: no usable answer.
        """
        status, _, body = self._exchange("GET", self._path, timeout)
        if status != 200:
            raise TransportError(f"the judge answers HTTP {status}: {_error_text(body)}", "refused", status)
        try:
            found = json_object(body)
            inputs, outputs = (
                frozenset(str(tensor["name"]) for tensor in found.get(side, []))
                for side in ("inputs", "outputs")
            )
            return Offer(inputs, outputs)
        except Exception as error:
            raise TransportError(
                f"what the judge says of itself cannot be read: {error!r}", "unreadable"
            ) from error

    def infer(self, inputs: Arrays, timeout: float, request_id: str = "") -> Arrays:
        """Send one request and wait for its answer.

        Args:
            inputs: arrays by name, `[B, ...]` of numbers, or of `bytes` as objects.
            timeout: seconds for all of it, from connecting to the last byte.
            request_id: comes back with the answer if the server is Triton; an answer to another request is
                refused.

        Returns:
            All outputs of the model by name.

        Raises:
            TransportError: not reached, no answer in time, refused, or an answer that cannot be read.
        """
        packed, json_length = pack_request(inputs, request_id)
        status, header_length, body = self._exchange(
            "POST",
            f"{self._path}/infer",
            timeout,
            packed,
            {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(json_length)},
        )
        if status != 200:
            raise TransportError(f"the judge answers HTTP {status}: {_error_text(body)}", "refused", status)
        try:
            return unpack_answer(body, header_length, self._model, request_id)
        except Exception as error:  # whatever bytes can do to a parser, it is the answer's fault
            raise TransportError(
                f"the judge's answer cannot be read: {_short(error)}", "unreadable"
            ) from error

    def abort(self) -> None:
        """Cut the request in flight short, and let none follow: whoever waits gets a `TransportError`."""
        self._aborted = True
        sock = self._open
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _others(self, timeout: float) -> str:
        """Name the models of a server that has not ours, if it tells."""
        with contextlib.suppress(TransportError, ValueError, TypeError, KeyError):
            status, _, body = self._exchange("POST", "/v2/repository/index", timeout)
            if status == 200:
                return f"; models there: {', '.join(model['name'] for model in json.loads(body)) or 'none'}"
            # Our own server keeps its index to itself, but carries its model in its name.
            _, _, body = self._exchange("GET", "/v2", timeout)
            return f"; the server there is called {json_object(body)['name']}"
        return ""

    def _exchange(
        self, method: str, path: str, timeout: float, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, int | None, bytes]:
        """One request and its answer: status, length of the JSON part if told, body."""
        deadline = time.monotonic() + timeout
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        sent = {"Connection": "close", **(headers or {})}
        if self._token is not None:
            sent[TOKEN_HEADER] = self._token
        try:
            connection.connect()
            assert connection.sock is not None
            self._open = sock = connection.sock  # http.client lets go of it before the body is read
            if self._aborted:  # while connecting, when there was no socket to shut down
                raise TransportError("the request was cut short", "unreachable")
            sock.settimeout(_time_left(deadline))
            connection.request(method, path, body, sent)
            sock.settimeout(_time_left(deadline))
            response = connection.getresponse()
            length = response.getheader(_HEADER_LENGTH)
            answer = _read(response, sock, deadline)
            return response.status, None if length is None else int(length), answer
        except TimeoutError as error:
            raise TransportError(f"no answer within {timeout:g} s", "timeout") from error
        except OSError as error:
            raise TransportError(f"{type(error).__name__}: {error}", "unreachable") from error
        except (http.client.HTTPException, ValueError) as error:
            raise TransportError(f"the answer is not HTTP: {_short(error)}", "unreadable") from error
        finally:
            self._open = None
            connection.close()


def _read(response: http.client.HTTPResponse, sock: socket.socket, deadline: float) -> bytes:
    """The body, as long as it is neither late nor endless."""
    parts: list[bytes] = []
    size = 0
    while not response.isclosed():
        sock.settimeout(_time_left(deadline))
        part = response.read1(_CHUNK_BYTES)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise ValueError(f"longer than {MAX_ANSWER_BYTES:,} bytes")
    if response.length:  # read1 does not mind an answer that was cut short
        raise ConnectionResetError(f"the answer was cut short after {size} bytes")
    return b"".join(parts)


def _time_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _error_text(body: bytes) -> str:
    """The message of an error answer, at most 300 characters; of a traceback, the last exception."""
    text = body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return (exceptions or lines or ["(no message)"])[-1][:300]


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
