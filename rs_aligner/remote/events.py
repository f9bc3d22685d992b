"""Server-sent events, read as they come: what a server says in the midst of an answer.

The format is that of the HTML standard (9.2, "Server-sent events"): lines, of which an empty one ends an
event. Comments are kept, since a server may say there what other readers are to pass over. An event that is
not ended does not count. Left out on purpose: names, ids and times of events, lines that end in a carriage
return alone, and coming back to where an answer was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

MEDIA_TYPE = "text/event-stream"


class Event(NamedTuple):
    """One event.

    Attributes:
        data: what it says.
        comments: among its lines.
    """

    data: bytes
    comments: tuple[str, ...]


def events_of(pieces: Iterable[bytes]) -> Iterator[Event]:
    """The events of an answer, each as soon as it is ended.

    Args:
        pieces: of the answer's body, cut anywhere.
    """
    data: list[bytes] = []
    comments: list[str] = []
    for line in _lines(pieces):
        if not line:
            if data:
                yield Event(b"\n".join(data), tuple(comments))
            data, comments = [], []
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif line.startswith(b":"):
            comments.append(value.decode("utf-8", "replace"))


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, without their ends."""
    begun: list[bytes] = []  # a line that goes on in the next piece
    for piece in pieces:
        first, *others = piece.split(b"\n")
        begun.append(first)
        for other in others:
            yield b"".join(begun).removesuffix(b"\r")
            begun = [other]
