"""Server-sent events, however their bytes are cut."""

from __future__ import annotations

import pytest

from rs_aligner.remote.events import Event, events_of

SAID = (
    b": first\n: second\ndata: one\n\n"
    b"event: note\nid: 7\ndata:two\nretry: 3\ndata:  and more\n\n"
    b": of no event\n\n\ndata\n: behind\n\n"
    b'data: {"a": "b: c"}\r\n\r\n'
    b"garbage\x00\xff\n\n"
    b":\xff\ndata: \xc3\xa4\n\n"
    b"data: not ended\n"
)
EVENTS = [
    Event(b"one", ("first", "second")),
    Event(b"two\n and more", ()),
    Event(b"", ("behind",)),
    Event(b'{"a": "b: c"}', ()),
    Event("ä".encode(), ("\ufffd",)),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_they_are_cut(size: int) -> None:
    pieces = [SAID[start : start + size] for start in range(0, len(SAID), size)]
    assert list(events_of(pieces)) == EVENTS


def test_an_event_is_there_as_soon_as_it_is_ended() -> None:
    taken: list[int] = []

    def pieces():
        for number, piece in enumerate([b"data: one\n", b"\ndata: two", b"\n\n"]):
            taken.append(number)
            yield piece

    events = events_of(pieces())
    assert next(events).data == b"one"
    assert taken == [0, 1]
    assert next(events).data == b"two"
    assert next(events, None) is None
    assert list(events_of([])) == []
