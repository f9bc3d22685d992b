"""Servers that are alike: which of them can be asked, which is to be asked next, and who comes back when.

A server that cannot be reached, is late, or fails several times in a row is left out (its circuit is open),
and requests go to the others. A thread of its own then tries it out at growing intervals: is it ready, and
does it answer? Only when it does is it let in again, so that it is never a run's requests that find out. All
servers start like that, but are tried more often.

The next request goes to the server on which it is likely to be answered first, by the requests that it has
and the time that it took for the last ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

from rs_aligner import stopping
from rs_aligner.remote.endpoint import SERVER, Endpoint, Link, Role
from rs_aligner.remote.errors import UNTRUSTED, TransportError
from rs_aligner.remote.retry import AskError, is_transient, jittered

_logger = logging.getLogger("rs_aligner")

FAILURES_IN_A_ROW = 3  # with answers that are errors or none; a server that does not answer is out at once
POLL_SECONDS = 0.2  # between trials at the start
SAID_FIRST, SAID_EVERY = (
    2.0,
    10.0,
)  # seconds of waiting at the start, after which it is said for whom, and why
_MEMORY = 0.7  # of the time that a row takes: how much of it the next answer leaves as it is
_GRACE = 0.3  # after the start's last moment, for a trial that ends with it to say why


class EndpointPool(Generic[Link]):
    """All servers that can be asked for the same thing.

    Args:
        endpoints: the servers.
        limit: requests at once at each.
        try_out: asks a server that is left out whether it answers, and raises what is wrong: a
            `TransportError` if it may answer later. Called from threads of the pool, with the seconds that
            its readiness may take (None: as long as usual).
        role: what they are called in messages.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint[Link]],
        limit: int,
        try_out: Callable[[Endpoint[Link], float | None], None],
        role: Role = SERVER,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._limit = limit
        self._try_out = try_out
        self._role = role
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._starting_until: float | None = None
        self._all_out_since: float | None = None
        self._threads: set[threading.Thread] = set()

    def open(self, timeout: float) -> None:
        """Let the servers in that pass their trial in time; others may follow later.

        Raises:
            TransportError: there is none.
            Stopped: this process was asked to stop before there was one.
            Exception: what `try_out` raised besides for one of them: waiting will not help.
        """
        deadline = self._starting_until = time.monotonic() + timeout
        next_word = deadline - timeout + SAID_FIRST
        with self._changed:
            for endpoint in self.endpoints:
                self._watch(endpoint)
            while not (
                all(e.why_out is None for e in self.endpoints)
                or any(e.hopeless for e in self.endpoints)
                or self._closed.is_set()
                or (left := deadline + _GRACE - time.monotonic()) <= 0
                or stopping.is_asked()
            ):
                self._changed.wait(min(left, stopping.LOOK_SECONDS))
                if time.monotonic() >= next_word:
                    next_word += SAID_EVERY
                    message = "waiting for the %s, up to %g s: %s"
                    _logger.info(message, self._role.name, timeout, self.why_out())
            self._starting_until = None
            hopeless = [e.hopeless for e in self.endpoints if e.hopeless is not None]
            out = [e for e in self.endpoints if e.why_out is not None]
        if hopeless or len(out) == len(self.endpoints):
            reasons = self.why_out()
            self.close()
            if not hopeless and stopping.is_asked():
                raise stopping.Stopped(stopping.reason())
            raise hopeless[0] if hopeless else TransportError(reasons, "unreachable")
        for endpoint in out:
            self._tell_out(endpoint, "", endpoint.why_out)

    def renew(self, why: str, patience: float) -> None:
        """Leave every server out and try it out anew, since what it has to show has changed.

        Comes back when each that was in has had its trial and one is in. Those that were out are tried, too,
        and follow when they can.

        Args:
            why: it is left out meanwhile.
            patience: seconds to wait for a server, as long as there is none.

        Raises:
            TransportError, Stopped, Exception: as `open`; the pool stays open.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            renewed = [(one, one.trials) for one in self.endpoints if one.why_out is None]
            for endpoint in self.endpoints:
                endpoint.hopeless, endpoint.is_due = None, endpoint.why_out is not None
            self._changed.notify_all()
            for endpoint, _ in renewed:
                endpoint.why_out = why
                self._watch(endpoint, at_once=True)
            while not (
                (self.num_in() and all(one.trials > before for one, before in renewed))
                or all(one.hopeless for one in self.endpoints)
                or self._closed.is_set()
                or (left := deadline - time.monotonic()) <= 0
                or stopping.is_asked()
            ):
                self._changed.wait(min(left, stopping.LOOK_SECONDS))
            hopeless = [one.hopeless for one in self.endpoints if one.hopeless is not None]
            out = [one for one, _ in renewed if one.why_out is not None]
            for endpoint in out:
                endpoint.times_out += 1
            is_over, reasons = self.num_in() == 0, self.why_out()
        if is_over and stopping.is_asked():
            raise stopping.Stopped(stopping.reason())
        if is_over:
            raise (
                hopeless[0]
                if len(hopeless) == len(self.endpoints)
                else TransportError(reasons, "unreachable")
            )
        for endpoint in out:
            self._tell_out(endpoint, " again", endpoint.why_out)

    def let_in(self, endpoint: Endpoint[Link]) -> None:
        """From now on it can be asked."""
        with self._changed:
            endpoint.why_out, endpoint.hopeless, endpoint.failures = None, None, 0
            self._all_out_since = None
            self._changed.notify_all()

    def acquire(self, avoid: Endpoint[Link] | None, outage: float) -> Endpoint[Link] | None:
        """The server to ask next, to be given back with `succeeded` or `failed`. Waits while all are busy.

        Args:
            avoid: is only taken if no other can be.
            outage: seconds after which to give up if all are left out.

        Returns:
            None if all are left out for so long, or the pool is closed.
        """
        with self._changed:
            while not self._closed.is_set():
                able = [e for e in self.endpoints if e.why_out is None and e.in_flight < self._limit]
                if able:
                    chosen = min(able, key=lambda e: (e is avoid, *e.load()))
                    chosen.in_flight += 1
                    return chosen
                left = None
                if self._all_out_since is not None:
                    left = self._all_out_since + outage - time.monotonic()
                    if left <= 0:
                        return None
                self._changed.wait(left)
        return None

    def succeeded(self, endpoint: Endpoint[Link], num_rows: int, seconds: float) -> None:
        """An answer came, and was right."""
        with self._changed:
            each, before = seconds / num_rows, endpoint.seconds_per_row
            endpoint.seconds_per_row = each if before is None else _MEMORY * before + (1 - _MEMORY) * each
            endpoint.failures = endpoint.times_out = 0
            endpoint.in_flight -= 1
            self._changed.notify_all()

    def failed(self, endpoint: Endpoint[Link], error: BaseException) -> None:
        """An answer did not come, or was wrong."""
        gone = isinstance(error, TransportError) and error.kind in ("unreachable", "timeout", *UNTRUSTED)
        with self._changed:
            endpoint.in_flight -= 1
            self._changed.notify_all()
            if isinstance(error, AskError) and is_transient(error):
                endpoint.failures += 1  # what is wrong with a request says nothing of the server
            if endpoint.why_out is not None or self._closed.is_set():
                return
            if not gone and endpoint.failures < FAILURES_IN_A_ROW:
                return
            endpoint.why_out = str(error)
            endpoint.times_out += 1
            if self.num_in() == 0:
                self._all_out_since = time.monotonic()
            self._watch(endpoint)
        self._tell_out(endpoint, " again", error)

    def num_in(self) -> int:
        """How many servers can be asked."""
        return sum(endpoint.why_out is None for endpoint in self.endpoints)

    def why_out(self) -> str:
        """Why there is nobody to ask."""
        return "; ".join(f"{one.url}: {one.why_out}" for one in self.endpoints if one.why_out is not None)

    def sleep(self, seconds: float) -> None:
        """Wait, unless the pool is closed meanwhile."""
        self._closed.wait(seconds)

    def stop(self) -> None:
        """Let nobody in any more, and nobody wait: what fails from now on fails because it ends."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop, and end the threads. May be called twice."""
        self.stop()
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout=1.0)

    def _tell_out(self, endpoint: Endpoint[Link], again: str, why: object) -> None:
        role = self._role
        message = "the %s at %s is left out until it %s%s: %s"
        _logger.warning(message, role.name, endpoint.url, role.does, again, why)

    def _watch(self, endpoint: Endpoint[Link], *, at_once: bool = False) -> None:
        """Start the thread that brings a server in."""
        name = f"{self._role.name}-probe-{endpoint.url}"
        thread = threading.Thread(target=self._bring_in, args=(endpoint, at_once), name=name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _bring_in(self, endpoint: Endpoint[Link], at_once: bool) -> None:
        """Try a server out until it answers (the life of a thread)."""
        round_ = endpoint.times_out
        try:
            delay = 0.0 if at_once or self._starting_until is not None else jittered(round_)
            while not self._rest(endpoint, delay):
                is_waited_for = at_once or self._starting_until is not None
                at_once, problem, is_new = False, self._problem(endpoint), False
                with self._changed:
                    endpoint.trials += 1
                    if problem is not None:  # told with the trial, for who waits for its end
                        endpoint.why_out = str(problem)
                        if not isinstance(problem, TransportError):
                            is_new = endpoint.hopeless is None
                            endpoint.hopeless = problem
                    self._changed.notify_all()
                if is_new and not is_waited_for:  # else who waits for the trial tells it
                    self._tell_out(endpoint, " again", problem)
                if problem is None:
                    if endpoint.times_out:
                        _logger.info("the %s at %s %s again", self._role.name, endpoint.url, self._role.does)
                    return
                round_ += 1
                delay = self._delay(round_)
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _rest(self, endpoint: Endpoint[Link], seconds: float) -> bool:
        """Wait until a trial is due; whether there is none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or endpoint.is_due, seconds)
            endpoint.is_due = False
        return self._closed.is_set()

    def _delay(self, round_: int) -> float:
        """Seconds until the next trial; at the start, the last one has time to learn what is wrong."""
        until = self._starting_until
        if until is None:
            return jittered(round_)
        left = until - time.monotonic()
        return POLL_SECONDS if left > 2 * POLL_SECONDS else max(left, 0.0) + 2 * _GRACE

    def _problem(self, endpoint: Endpoint[Link]) -> Exception | None:
        """Try a server out, and let it in if there is no problem."""
        until = self._starting_until
        try:
            self._try_out(endpoint, None if until is None else max(until - time.monotonic(), 0.01))
        except Exception as error:  # of whatever kind: it does not answer
            return error
        self.let_in(endpoint)
        return None
