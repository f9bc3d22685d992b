"""Ports that are chosen before their server starts: what may take them in between, and what cannot."""

from __future__ import annotations

import random
import socket

import pytest

from rs_aligner.remote import listening
from rs_aligner.remote.listening import any_free_port
from tests import ports


def handed_out() -> range:
    """What this system gives to connections, and to whoever asks for any port."""
    first, last = map(int, listening._HANDED_OUT.read_text().split())
    return range(first, last + 1)


def test_no_port_is_one_that_the_system_gives_to_others() -> None:
    others = handed_out()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert probe.getsockname()[1] in others
    drawn = [any_free_port() for _ in range(200)]
    assert not set(drawn) & set(others)
    assert len(set(drawn)) > 190
    for port in drawn:
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


def test_two_runs_of_one_seed_draw_different_ports_and_the_seed_draws_what_it_would() -> None:
    drawn, then = [], []
    for _ in range(2):
        random.seed(1)
        drawn.append([any_free_port() for _ in range(3)])
        then.append(random.random())
    assert drawn[0] != drawn[1]
    assert then[0] == then[1]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("32768\t60999\n", range(20_000, 32_768)),
        ("10000\t40000\n", range(40_001, 65_536)),
        ("1024\t65535\n", range(1_024, 65_536)),
        (None, range(20_000, 32_768)),
        ("?\n", range(20_000, 32_768)),
    ],
)
def test_what_is_drawn_lies_beside_what_the_system_keeps_for_itself(
    line: str | None, wanted: range, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(listening, "_HANDED_OUT", tmp_path / "range")
    if line is not None:
        (tmp_path / "range").write_text(line)
    assert {any_free_port() for _ in range(50)} <= set(wanted)


def test_a_port_at_which_somebody_listens_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not listening._is_free(port)
        monkeypatch.setattr(listening, "_NOT_HANDED_OUT", range(port, port + 1))
        monkeypatch.setattr(listening, "_HANDED_OUT", listening._HANDED_OUT.with_name("missing"))
        assert any_free_port() != port


def test_the_ports_of_tests_are_neither_drawn_by_the_project_nor_handed_out() -> None:
    mine = {ports.free_port() for _ in range(100)}
    assert len(mine) == 100
    every = range(ports._FIRST, ports._FIRST + ports._EACH * ports._WORKERS)
    assert mine <= set(every)
    assert not set(every) & set(listening._NOT_HANDED_OUT)
    assert not set(every) & set(handed_out())
