"""Rows in, futures out: batches of them go to whichever server is free, again where that may help.

Rows are handed in one by one and wait until a batch is full or the oldest has waited long enough (`queue`).
A few sender threads for each server ask for batches, so that many small requests never run a server over.
What fails is asked again, another server first (`endpoints`), as long as there is hope and patience
(`retry`); what then has no answer gets a failure with its reason. What is asked, and what an answer means, is
the business of a `Service`.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rs_aligner import stopping
from rs_aligner.remote.endpoint import SERVER, Endpoint, Role
from rs_aligner.remote.endpoints import EndpointPool
from rs_aligner.remote.errors import BadAnswer, TransportError
from rs_aligner.remote.queue import Result, Row, RowQueue, Waiting
from rs_aligner.remote.retry import AskError, Patience, is_transient, is_worth_halving

PROBE_SECONDS = 5.0  # for a server that was left out to say that it is ready


class Abortable(Protocol):
    """A conversation with a server."""

    def abort(self) -> None:
        """Let whoever waits wait no longer; may come from another thread."""


Link = TypeVar("Link", bound=Abortable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How servers are asked.

    Attributes:
        batch_size: rows of a request at most.
        wait_seconds: how long a request that is not full waits for more rows.
        room: rows that may wait to be sent; who hands in more waits.
        in_flight: requests under way at once at each server.
        give_up_after: seconds after which a request that fails is given up; None to count attempts.
        attempts: after how many it is given up otherwise.
        role: what a server is called in messages.
    """

    batch_size: int
    wait_seconds: float
    room: int
    in_flight: int
    give_up_after: float | None
    attempts: int
    role: Role = SERVER

    def patience(self) -> Patience:
        """That of one request."""
        return Patience(seconds=self.give_up_after, attempts=self.attempts)


class Service(Protocol[Row, Result, Link]):
    """What servers are asked for. Called from several threads."""

    def try_out(self, endpoint: Endpoint[Link], link: Link, ready_timeout: float) -> None:
        """Find out whether a server answers; raise what is wrong, a `TransportError` if it may pass."""

    def ask(
        self, endpoint: Endpoint[Link], link: Link, batch: Sequence[Waiting[Row, Result]]
    ) -> list[Result]:
        """Ask one server once; a result for each row, or an `AskError`.

        Rows may be resolved as their results come; a batch whose rows all are is not asked for again.
        """

    def explained(self, endpoint: Endpoint[Link], error: AskError) -> str:
        """What went wrong, where, and what may mend it."""

    def failure(self, reason: str) -> Result:
        """The result of a row that has no answer."""


class Asker(Generic[Row, Result, Link]):
    """Asks servers that are alike for answers to rows.

    Thread-safe: any number of threads may submit, flush and close, and rows of all of them share batches.
    Nothing is sent and no thread started before `open`.

    Args:
        service: what is asked.
        endpoints: the servers.
        how: they are asked.
        here: rows are asked for in the thread that hands them in, whenever a batch is full, and at `flush`.
    """

    def __init__(
        self,
        service: Service[Row, Result, Link],
        endpoints: Sequence[Endpoint[Link]],
        how: Asking,
        *,
        here: bool = False,
    ) -> None:
        self._service, self._how, self._here = service, how, here
        self._queue: RowQueue[Row, Result] = RowQueue(how.batch_size, how.room)
        self._pool = EndpointPool(endpoints, how.in_flight, self._try_out, how.role)
        self._name = uuid.uuid4().hex[:16].encode()
        # What follows is guarded by this lock.
        self._lock = threading.Lock()
        self._num_rows = 0
        self._in_flight: set[Waiting[Row, Result]] = set()
        self._links: set[Link] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether nothing is asked any more."""
        return self._stopped

    def open(self, timeout: float) -> None:
        """Wait until servers answer, so many seconds at most; those that are not in time may join later.

        Raises:
            TransportError: none does.
            Exception: what the service's `try_out` raised besides.
        """
        self._pool.open(timeout)
        with self._lock:
            if self._stopped:
                return
            self._threads = [
                threading.Thread(target=self._send, name=f"{self._how.role.name}-{i}", daemon=True)
                for i in range(self._how.in_flight * len(self._pool.endpoints))
            ]
            for thread in self._threads:
                thread.start()

    def renew(self, why: str, patience: float) -> None:
        """Try all servers out anew (`EndpointPool.renew`); rows that are handed in meanwhile wait.

        Raises:
            TransportError: no server passed in time.
            Exception: what the service's `try_out` raised besides, for all of them.
        """
        self._pool.renew(why, patience)

    def open_here(self) -> Endpoint[Link]:
        """Let the only server in without a trial, which asks in a thread of its own."""
        [endpoint] = self._pool.endpoints
        self._pool.let_in(endpoint)
        return endpoint

    def submit(self, row: Row, length: int) -> Future[Result]:
        """Hand in one row. Waits while too many wait already.

        Args:
            row: as the service sends it.
            length: rows of similar length travel together.

        Returns:
            A future that resolves to the result; it never raises.

        Raises:
            RuntimeError: nothing is asked any more.
        """
        waiting: Waiting[Row, Result] = Waiting(
            row, length, time.monotonic() + self._how.wait_seconds, self._next_id()
        )
        if not self._queue.put(waiting):
            raise RuntimeError(f"the {self._how.role.name}'s client is closed")
        if self._here:
            self._ask_here(full=True)
        return waiting.future

    def flush(self) -> None:
        """Send what is waiting at once, in batches that may not be full."""
        if self._here:
            self._ask_here(full=False)
        else:
            self._queue.flush()

    def stop(self) -> None:
        """Cut requests short. Rows without a result get a failure. May be called twice."""
        unanswered = self._queue.close()
        with self._lock:
            self._stopped = True
            unanswered += self._in_flight
            links = list(self._links)
        self._pool.stop()
        for waiting in unanswered:
            waiting.resolve(self._service.failure(self._why_stopped))
        for link in links:
            link.abort()

    def close(self) -> None:
        """Stop, and end the threads. May be called twice."""
        self.stop()
        self._pool.close()
        for thread in self._threads:
            thread.join(timeout=1.0)  # one that is still connecting ends by itself; it is a daemon

    @property
    def _why_stopped(self) -> str:
        return f"the client was closed before the {self._how.role.name} answered"

    def _next_id(self) -> bytes:
        """An id that no other row of any client has."""
        with self._lock:
            self._num_rows += 1
            return b"%s-%d" % (self._name, self._num_rows)

    def _send(self) -> None:
        """Ask for batches until nothing is asked any more (the life of a sender thread)."""
        while batch := self._queue.take():
            self._answer(batch)

    def _ask_here(self, *, full: bool) -> None:
        """Ask for what waits in this thread: full batches, or all of it; nothing once a stop is asked for."""
        while not stopping.is_asked() and (batch := self._queue.take_now(full=full)):
            self._answer(batch)

    def _answer(self, batch: Sequence[Waiting[Row, Result]]) -> None:
        """Ask for a batch, and resolve its futures."""
        with self._lock:
            self._in_flight.update(batch)
        try:
            results = self._ask(batch, self._how.patience())
        except Exception as error:  # a sender that died would leave futures open for ever
            failure = self._service.failure(f"unexpected {type(error).__name__}: {error}")
            results = [failure] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            waiting.resolve(result)
        with self._lock:
            self._in_flight.difference_update(batch)

    def _ask(self, batch: Sequence[Waiting[Row, Result]], patience: Patience) -> list[Result]:
        """Ask until there is an answer, or no hope or patience is left.

        A batch that may fare better in parts is halved; the halves get what is left of its patience.
        """
        last: Endpoint[Link] | None = None
        while True:
            endpoint = self._pool.acquire(avoid=last, outage=patience.outage)
            if endpoint is None:
                nobody = f"no {self._how.role.name} can be asked: {self._pool.why_out()}"
                reason = self._why_stopped if self._stopped else nobody
                break
            last = endpoint
            try:
                return self._ask_once(endpoint, batch)
            except (TransportError, BadAnswer) as error:
                reason, hopeless = self._service.explained(endpoint, error), not is_transient(error)
                delay = patience.failed(getattr(error, "retry_after", None))
                halve = is_worth_halving(error, patience.failures, last=delay is None)
            if all(waiting.future.done() for waiting in batch):
                break
            if halve and len(batch) > 1:
                half = len(batch) // 2
                return self._ask(batch[:half], patience) + self._ask(batch[half:], patience)
            if hopeless or delay is None:
                break
            if patience.failures >= self._pool.num_in():  # another server is asked at once
                self._pool.sleep(delay)
        return [self._service.failure(reason) for _ in batch]

    def _ask_once(self, endpoint: Endpoint[Link], batch: Sequence[Waiting[Row, Result]]) -> list[Result]:
        """Ask one server, and tell the pool how it went."""
        began = time.monotonic()
        try:
            with self._conversation(endpoint) as link:
                results = self._service.ask(endpoint, link, batch)
        except BaseException as error:
            self._pool.failed(endpoint, error)
            raise
        self._pool.succeeded(endpoint, len(batch), time.monotonic() - began)
        return results

    def _try_out(self, endpoint: Endpoint[Link], ready_timeout: float | None) -> None:
        with self._conversation(endpoint) as link:
            self._service.try_out(endpoint, link, PROBE_SECONDS if ready_timeout is None else ready_timeout)

    @contextlib.contextmanager
    def _conversation(self, endpoint: Endpoint[Link]) -> Iterator[Link]:
        """A conversation that `stop` can cut short."""
        link = endpoint.connect()
        with self._lock:
            if self._stopped:
                raise TransportError("the client is closed", "unreachable")
            self._links.add(link)
        try:
            yield link
        finally:
            with self._lock:
                self._links.discard(link)
