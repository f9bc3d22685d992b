"""One HTTP conversation with a server, and how it can fail.

Over the standard library's HTTP client. A connection is made for each request: next to a batch of rows it
costs nothing, and none can go stale. Whatever a server sends becomes an answer or a `TransportError`, and
takes neither more time nor more memory than it was given. Left out on purpose: what is said (`triton` speaks
the KServe protocol), and whether to ask again (`retry`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

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


class HTTPAnswer(NamedTuple):
    """What a server answered: status, headers by lower-case name, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Conversation:
    """Requests to one server, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        host: name or address of the server.
        port: its HTTP port.
        headers: sent with each request.
    """

    def __init__(self, host: str, port: int, headers: Mapping[str, str] | None = None) -> None:
        self._host = host
        self._port = port
        self._headers = {"Connection": "close", **(headers or {})}
        self._open: socket.socket | None = None
        self._aborted = False

    def exchange(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> HTTPAnswer:
        """One request and its answer, whatever its status.

        Args:
            method, path: of the request.
            timeout: seconds for all of it, from connecting to the last byte.
            body, headers: of the request, besides the headers of the conversation.

        Raises:
            TransportError: not reached, no answer in time, or one that is not HTTP.
        """
        deadline = time.monotonic() + timeout
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
            assert connection.sock is not None
            self._open = sock = connection.sock  # http.client lets go of it before the body is read
            if self._aborted:  # while connecting, when there was no socket to shut down
                raise TransportError("the request was cut short", "unreachable")
            sock.settimeout(_time_left(deadline))
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            sock.settimeout(_time_left(deadline))
            response = connection.getresponse()
            answer = _read(response, sock, deadline)
            return HTTPAnswer(response.status, {k.lower(): v for k, v in response.getheaders()}, answer)
        except TimeoutError as error:
            raise TransportError(f"no answer within {timeout:g} s", "timeout") from error
        except OSError as error:
            raise TransportError(f"{type(error).__name__}: {error}", "unreachable") from error
        except (http.client.HTTPException, ValueError) as error:
            raise not_http(error) from error
        finally:
            self._open = None
            connection.close()

    def abort(self) -> None:
        """Cut the request in flight short, and let none follow: whoever waits gets a `TransportError`."""
        self._aborted = True
        sock = self._open
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def error_text(body: bytes) -> str:
    """The message of an error answer, at most 300 characters; of a traceback, the last exception."""
    text = body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return (exceptions or lines or ["(no message)"])[-1][:300]


def in_short(error: BaseException) -> str:
    """An exception on one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def not_http(error: BaseException) -> TransportError:
    """What to raise for bytes that a server may not send."""
    return TransportError(f"the answer is not HTTP: {in_short(error)}", "unreadable")


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
