"""Servers that are asked for something else than scores: the same batches, retries and circuit breaker.

What HTTP and judges bring is in `tests/reward/client`. Here servers write texts, and live in this process.
"""

from __future__ import annotations

import ast
import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rs_aligner import remote
from rs_aligner.remote.asking import Asker, Asking
from rs_aligner.remote.endpoint import Endpoint, Role
from rs_aligner.remote.endpoints import EndpointPool
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.queue import Waiting
from rs_aligner.remote.retry import AskError, Patience, retry_after


class Engine:
    """A server that continues texts, unless it is away; `asked` are the sizes of its batches."""

    def __init__(self) -> None:
        self.away, self.asked, self.hangs = False, list[int](), threading.Event()
        self.hangs.set()

    def abort(self) -> None:
        self.hangs.set()

    def write(self, texts: Sequence[str]) -> list[str]:
        self.asked.append(len(texts))
        self.hangs.wait(20)
        if self.away:
            raise TransportError("away", "unreachable")
        return [f"{text}, and so on" for text in texts]


class Writing:
    """What the engines are asked for; a failure is marked, and never a text."""

    def try_out(self, endpoint: Endpoint[Engine], link: Engine, ready_timeout: float) -> None:
        if link.away:
            raise TransportError("away", "unreachable")

    def ask(
        self, endpoint: Endpoint[Engine], link: Engine, batch: Sequence[Waiting[str, str | AskError]]
    ) -> list[str | AskError]:
        return [*link.write([waiting.row for waiting in batch])]

    def explained(self, endpoint: Endpoint[Engine], error: AskError) -> str:
        return f"{endpoint.url}: {error} (engine.servers)"

    def failure(self, reason: str) -> str | AskError:
        return TransportError(reason, "unreachable")


def asker(*engines: Engine, attempts: int = 3, here: bool = False) -> Asker[str, str | AskError, Engine]:
    return Asker(
        Writing(),
        [Endpoint(f"http://engine-{i}", lambda engine=engine: engine) for i, engine in enumerate(engines)],
        Asking(
            batch_size=4,
            wait_seconds=5,
            room=100,
            in_flight=1,
            give_up_after=None,
            attempts=attempts,
            role=Role("engine", "writes"),
        ),
        here=here,
    )


def test_results_are_whatever_the_service_makes_of_an_answer() -> None:
    engine = Engine()
    asked = asker(engine)
    asked.open(5)
    futures = [asked.submit(f"text {i}", length=6) for i in range(6)]
    asked.flush()
    assert [future.result(10) for future in futures] == [f"text {i}, and so on" for i in range(6)]
    assert engine.asked == [4, 2]
    asked.close()


def test_another_server_is_asked_and_messages_call_it_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def cannot(*_: object) -> None:
        raise ConnectionError("it wants another token")

    first, second = Engine(), Engine()
    asked = asker(first, second)
    with caplog.at_level(logging.INFO, "rs_aligner"):
        asked.open(5)
        first.away = True
        for i in range(3):
            future = asked.submit(f"text {i}", length=6)
            asked.flush()
            assert future.result(10) == f"text {i}, and so on"
        assert "the engine at http://engine-0 is left out until it writes again: away" in caplog.text
        first.away = False
        deadline = time.monotonic() + 20
        while "the engine at http://engine-0 writes again" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.away = True
        for _ in range(2):  # of which one meets it
            future = asked.submit("text", length=4)
            asked.flush()
            assert future.result(10) == "text, and so on"
        asked._service.try_out = cannot  # type: ignore[method-assign]  # a fault in its place
        while "until it writes again: it wants another token" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        tried = asked._pool.endpoints[0].trials
        while asked._pool.endpoints[0].trials < tried + 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert caplog.text.count("it wants another token") == 1
    asked.close()
    assert "judge" not in caplog.text


def test_servers_that_have_something_new_to_show_are_tried_out_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = Engine(), Engine()
    asked = asker(first, second)
    with caplog.at_level(logging.INFO, "rs_aligner"):
        asked.open(5)
        asked.renew("it has to read the new rules", patience=5)
        assert caplog.text == ""
        first.away = True
        asked.renew("it has to read the new rules", patience=5)
        assert "the engine at http://engine-0 is left out until it writes again: away" in caplog.text
        future = asked.submit("text", length=4)
        asked.flush()
        assert future.result(10) == "text, and so on"
        assert (first.asked, second.asked) == ([], [1])
        second.away = True
        with pytest.raises(TransportError, match="http://engine-0: away; http://engine-1: away"):
            asked.renew("it has to read the new rules", patience=0.1)
        first.away = False
        asked.renew("it has to read the new rules", patience=20)  # which waits for the one that comes back
        future = asked.submit("text", length=4)
        asked.flush()
        assert future.result(10) == "text, and so on"
    asked.close()


def test_what_none_of_the_servers_can_ever_show_is_raised_at_once() -> None:
    engine = Engine()
    asked = asker(engine)
    asked.open(5)

    def cannot(*_: object) -> None:
        raise ValueError("it cannot read")

    asked._service.try_out = cannot  # type: ignore[method-assign]  # fails from now on
    with pytest.raises(ValueError, match="it cannot read"):
        asked.renew("it has to read the new rules", patience=20)
    asked.close()


def test_what_is_given_up_or_cut_short_is_a_failure_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rs_aligner.remote.retry.SHORT_OUTAGE", 0.1)
    engine = Engine()
    asked = asker(engine, attempts=2)
    asked.open(5)
    engine.away = True
    future = asked.submit("text", length=4)
    asked.flush()
    assert str(future.result(10)) == "no engine can be asked: http://engine-0: away"
    asked.close()
    engine = Engine()
    asked = asker(engine)
    asked.open(5)
    engine.hangs.clear()
    sent, waits = asked.submit("text", length=4), asked.submit("text", length=4)
    asked.flush()
    asked.close()
    for future in (sent, waits):
        assert str(future.result(0)) == "the client was closed before the engine answered"
    with pytest.raises(RuntimeError, match="the engine's client is closed"):
        asked.submit("text", length=4)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-")]


def test_a_fault_of_the_service_fails_its_batch_and_the_next_one_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine()
    asked = asker(engine)
    asked.open(5)
    write = Engine.write

    def faulty(self: Engine, texts: Sequence[str]) -> list[str]:
        if "bad" in texts:
            raise KeyError("no such text")
        return write(self, texts)

    monkeypatch.setattr(Engine, "write", faulty)
    for text in ("bad", "good"):
        futures = [asked.submit(text, length=4) for _ in range(2)]
        asked.flush()
        results = [str(future.result(10)) for future in futures]
        assert results == [{"bad": "unexpected KeyError: 'no such text'"}.get(text, "good, and so on")] * 2
    asked.close()


def test_a_batch_whose_rows_were_resolved_as_they_came_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine()

    def breaking_off(
        self: Writing, endpoint: Endpoint[Engine], link: Engine, batch: Sequence[Waiting[str, str | AskError]]
    ) -> list[str | AskError]:
        link.asked.append(len(batch))
        for waiting in batch[: 2 if len(link.asked) > 1 else 1]:
            waiting.resolve(f"{waiting.row} in time")
        raise TransportError("broken off", "unreadable")

    monkeypatch.setattr(Writing, "ask", breaking_off)
    asked = asker(engine, here=True)
    asked.open_here()
    futures = [asked.submit(f"text {number}", length=6) for number in range(2)]
    asked.flush()  # which comes back when nothing is asked any more
    assert [future.result(10) for future in futures] == ["text 0 in time", "text 1 in time"]
    asked.close()
    assert engine.asked == [2, 2]


def test_a_server_that_is_up_a_moment_later_is_let_in_while_the_asker_opens_and_says_that_it_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rs_aligner")
    monkeypatch.setattr("rs_aligner.remote.endpoints.SAID_FIRST", 0.0)
    engine, trials = Engine(), list[float]()

    def try_out(_: Writing, endpoint: Endpoint[Engine], link: Engine, ready_timeout: float) -> None:
        trials.append(ready_timeout)
        if len(trials) < 3:
            raise TransportError("not yet", "unreachable")

    monkeypatch.setattr(Writing, "try_out", try_out)
    asked = asker(engine)
    asked.open(8)  # raises where it is not in by then
    assert len(trials) == 3
    [said] = [record.getMessage() for record in caplog.records]  # and not at every look
    assert said == "waiting for the engine, up to 8 s: http://engine-0: not yet"
    asked.close()


def test_rows_are_asked_for_in_the_thread_that_hands_them_in_where_that_is_asked_for() -> None:
    engine = Engine()
    asked = asker(engine, here=True)
    assert asked.open_here().url == "http://engine-0"
    futures = [asked.submit(f"text {number}", length=6) for number in range(6)]
    assert [future.done() for future in futures] == [True] * 4 + [False] * 2  # a batch was full
    asked.flush()
    assert all(future.done() for future in futures)
    assert engine.asked == [4, 2]
    asked.close()
    assert asked.is_stopped


def test_the_room_names_neither_judges_nor_rewards_and_imports_nothing_above_it() -> None:
    files = sorted(Path(remote.__file__).parent.glob("*.py"))
    assert len(files) > 5
    for file in files:
        source = file.read_text()
        assert not re.search("judge|reward|scor(e|ing)|rollout|rm_cfg|remote_rm", source, re.IGNORECASE), file
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rs_aligner"):
                below = node.module == "rs_aligner.address" or (
                    node.module == "rs_aligner" and {name.name for name in node.names} == {"stopping"}
                )
                assert below or (node.module or "").startswith("rs_aligner.remote"), (file, node.module)


def test_retry_after_is_seconds_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 784111777.0)  # Sun, 06 Nov 1994 08:49:37 GMT
    said = {"2.5": 2.5, "Sun, 06 Nov 1994 08:49:47 GMT": 10.0, "Sun, 06 Nov 1994 08:49:27 GMT": 0.0}
    said |= {"-3": 0.0}
    assert {text: retry_after({"retry-after": text}) for text in said} == said
    assert [retry_after({"retry-after": text}) for text in ("", "soon", "inf", "nan")] == [None] * 4
    assert retry_after({}) is None


def test_a_server_that_wants_to_be_left_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """No longer than there is patience; a second server is asked at once."""
    slept: list[float] = []
    monkeypatch.setattr(EndpointPool, "sleep", lambda _, seconds: slept.append(seconds))
    refusals = [TransportError("slow down", "refused", 429, retry_after=90.0)]
    write = Engine.write

    def refusing(self: Engine, texts: Sequence[str]) -> list[str]:
        if refusals:
            raise refusals.pop()
        return write(self, texts)

    monkeypatch.setattr(Engine, "write", refusing)
    for engines, waits in ((1, [90.0]), (2, [])):
        asked = asker(*(Engine() for _ in range(engines)))
        asked.open(5)
        future = asked.submit("text", length=4)
        asked.flush()
        assert future.result(10) == "text, and so on"
        asked.close()
        assert slept == waits
        slept.clear()
        refusals.append(TransportError("slow down", "refused", 429, retry_after=90.0))
    assert Patience(seconds=20, attempts=1).failed(90.0) == pytest.approx(20, abs=1)
