"""One conversation: answers that are read as they come, and how they can break off."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from rs_aligner.address import Address
from rs_aligner.remote import transport
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.transport import Conversation

pytestmark = pytest.mark.timeout(30)
HEAD = b"HTTP/1.1 200 OK\r\nX-Some: Thing\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextlib.contextmanager
def saying(*pieces: bytes | threading.Event) -> Iterator[Conversation]:
    """A server that says this to the first who comes, waits where it is told to, and hangs up."""
    waits = [piece for piece in pieces if isinstance(piece, threading.Event)]
    for one in waits:
        one.clear()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                sock = listener.accept()[0]
                with sock:
                    sock.recv(1 << 16)
                    for piece in pieces:
                        if isinstance(piece, bytes):
                            sock.sendall(piece)
                        elif not piece.wait(20):
                            return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield Conversation(Address("127.0.0.1", listener.getsockname()[1]))
        for one in waits:
            one.set()
        thread.join(20)


def read(link: Conversation, timeout: float, into: list[bytes]) -> None:
    """All pieces of its answer, as far as they come."""
    with link.begin("GET", "/", timeout) as answer:
        for piece in answer.pieces:
            into.append(piece)


def test_an_answer_is_read_as_it_comes() -> None:
    was_read = threading.Event()
    with (
        saying(HEAD, chunk(b"one"), was_read, chunk(b"two"), END) as link,
        link.begin("GET", "/", 20) as answer,
    ):
        assert (answer.status, answer.headers["x-some"]) == (200, "Thing")
        assert next(answer.pieces) == b"one"
        was_read.set()  # only now is there more
        assert b"".join(answer.pieces) == b"two"


def test_an_answer_may_be_left_in_the_middle() -> None:
    with (
        saying(HEAD, chunk(b"one"), threading.Event()) as link,
        link.begin("GET", "/", 20) as answer,
    ):
        assert next(answer.pieces) == b"one"


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ((HEAD, chunk(b"one"), b"5\r\ntw"), "unreachable", "cut short"),
        ((HEAD, chunk(b"one"), b"5\r"), "unreachable", "cut short"),
        ((HEAD, chunk(b"one")), "unreachable", "cut short"),
        ((SIZED, b"one"), "unreachable", "cut short after 3 bytes"),
        ((HEAD, chunk(b"one"), threading.Event()), "timeout", r"no answer within 0\.5 s"),
        ((HEAD, chunk(b"one"), chunk(b"x" * 2000), END), "unreadable", "longer than 1,000 bytes"),
        ((b"SSH-2.0\r\n",), "unreadable", "the answer is not HTTP"),
    ],
    ids=["in a chunk", "in a length", "between chunks", "of a size", "frozen", "endless", "no HTTP"],
)
def test_what_breaks_off_fails_alike_however_it_is_read(
    said: tuple[bytes | threading.Event, ...], kind: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 1000)
    timeout = 0.5 if kind == "timeout" else 20
    with saying(*said) as link, pytest.raises(TransportError, match=told) as whole:
        link.exchange("GET", "/", timeout)
    pieces: list[bytes] = []
    with saying(*said) as link, pytest.raises(TransportError, match=told) as piecewise:
        read(link, timeout, pieces)
    assert whole.value.kind == piecewise.value.kind == kind
    assert b"".join(pieces).startswith(b"one") or told == "the answer is not HTTP"


def test_what_goes_wrong_with_who_reads_is_no_fault_of_the_server() -> None:
    class Full(list[bytes]):
        def append(self, _: bytes) -> None:
            raise ValueError("mine")

    with saying(HEAD, chunk(b"one"), END) as link, pytest.raises(ValueError, match="mine"):
        read(link, 20, Full())


def test_an_answer_can_be_cut_short_in_the_middle() -> None:
    class CuttingShort(list[bytes]):
        def append(self, _: bytes) -> None:
            link.abort()

    with (
        saying(HEAD, chunk(b"one"), threading.Event()) as link,
        pytest.raises(TransportError, match="cut short"),
    ):
        read(link, 20, CuttingShort())
