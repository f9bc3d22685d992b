"""One HTTP conversation with a server.

Over the standard library's HTTP client. A connection is made for each request (`connecting`): next to a batch
of rows it costs nothing, and none can go stale. Whatever a server sends becomes an answer or a
`TransportError`, and takes neither more time nor more memory than it was given, whether it is read when all
of it is there or as it comes. Left out on purpose: what is said (`triton` speaks the KServe protocol,
`events` has server-sent events), and whether to ask again (`retry`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rs_aligner.address import Address
from rs_aligner.remote.connecting import Line, connect
from rs_aligner.remote.errors import TransportError

# An answer has some bytes a row. What goes on beyond this is no answer.
MAX_ANSWER_BYTES = 256 * 2**20
AT_ONCE = 3.0  # seconds within which a server that speaks TLS turns its back on plain words; else it has died
_CHUNK_BYTES = 2**20
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


class HTTPAnswer(NamedTuple):
    """What a server answered: status, headers by lower-case name, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Arriving(NamedTuple):
    """An answer that has begun: status, headers by lower-case name, and the body in pieces, as they come."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


class Conversation:
    """Requests to one server, one at a time. To be used by one thread; `abort` may come from another.

    Args:
        address: of the server.
        headers: sent with each request.
        authority: a file with the certificates that are trusted, for TLS; None for the system's.
    """

    def __init__(
        self, address: Address, headers: Mapping[str, str] | None = None, authority: str | None = None
    ) -> None:
        self._address, self._authority = address, authority
        self._headers = {"Host": address.netloc, "Connection": "close", **(headers or {})}
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
        with self.begin(method, path, timeout, body, headers) as answer:
            return HTTPAnswer(answer.status, answer.headers, b"".join(answer.pieces))

    @contextlib.contextmanager
    def begin(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[Arriving]:
        """As `exchange`, for an answer that is read as it comes: each piece may raise, too.

        The connection ends with the context, whether or not the answer has.
        """
        deadline = time.monotonic() + timeout
        sock: socket.socket | None = None
        try:
            with self._in_words(timeout):
                sock = connect(self._address, self._authority, deadline, self._opened)
                connection = http.client.HTTPConnection(self._address.host, self._address.port)
                connection.sock = Line(sock, deadline)
                sent = {**self._headers, **(headers or {})}
                connection.request(method, f"{self._address.path}{path}", body, sent)
                response = connection.getresponse()
                told = {name.lower(): value for name, value in response.getheaders()}
            yield Arriving(response.status, told, self._pieces(response, timeout))
        finally:
            self._open = None
            if sock is not None:
                sock.close()

    def abort(self) -> None:
        """Cut the request in flight short, and let none follow: whoever waits gets a `TransportError`."""
        self._aborted = True
        sock = self._open
        if sock is not None:
            with contextlib.suppress(OSError):
                # Below TLS: its own way to end takes the line from under whoever reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _opened(self, sock: socket.socket) -> None:
        self._open = sock
        if self._aborted:  # while connecting, when there was no socket to shut down
            raise TransportError("the request was cut short", "unreachable")

    def _pieces(self, response: http.client.HTTPResponse, timeout: float) -> Iterator[bytes]:
        """The body, as long as it is neither late nor endless."""
        size = 0
        with self._in_words(timeout):
            while not response.isclosed() and (piece := response.read1(_CHUNK_BYTES)):
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise ValueError(f"longer than {MAX_ANSWER_BYTES:,} bytes")
                yield piece
            if response.length:  # read1 does not mind an answer that was cut short
                raise ConnectionResetError(f"the answer was cut short after {size} bytes")

    @contextlib.contextmanager
    def _in_words(self, timeout: float) -> Iterator[None]:
        """Whatever goes wrong on the way becomes a `TransportError`."""
        began = time.monotonic()
        try:
            yield
        except TimeoutError as error:
            raise TransportError(f"no answer within {timeout:g} s", "timeout") from error
        except http.client.RemoteDisconnected as error:
            is_other = self._address.is_tls or time.monotonic() - began > AT_ONCE
            hint = "" if is_other else " (a server that speaks TLS is asked by https://)"
            raise TransportError(f"{type(error).__name__}: {error}{hint}", "unreachable") from error
        except OSError as error:
            raise TransportError(f"{type(error).__name__}: {error}", "unreachable") from error
        except http.client.IncompleteRead as error:  # of an answer whose length is told as it comes
            raise TransportError("the answer was cut short", "unreachable") from error
        except (http.client.HTTPException, ValueError) as error:
            raise not_http(error) from error


def message_of(answer: HTTPAnswer) -> str:
    """What a server says of an error, on one line of at most 300 characters."""
    text = answer.body.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(name):
                found = found[name]
        if isinstance(found, str):
            return " ".join(found.split())[:300]
    if title := _TITLE.search(text):
        return " ".join(title[1].split())[:300]
    return error_text(answer.body)


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
