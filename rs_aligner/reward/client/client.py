"""Asks a judge for scores while the policy is still generating.

Rollouts are handed in one by one and wait until a batch is full or the oldest has waited long enough
(`queue`). A few sender threads for each server ask for batches, so that many small requests never run a
service over, and results come back through futures. Every answer is checked (`protocol`). What fails is asked
again, another server first (`endpoints`), as long as there is hope and patience (`retry`); what then has no
score gets a failure with its reason. Whether a run goes on with so many failures is for the trainer to say.

A judge that is handed over as an object, `rs_aligner.train`'s `reward_fn`, is asked in the thread that hands
rows in, whenever a batch is full: users' code may rely on the main thread, as `signal.alarm` does.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rs_aligner.remote.endpoints import Connection, Endpoint, EndpointPool
from rs_aligner.remote.queue import Result, RowQueue, Waiting
from rs_aligner.remote.retry import Patience, is_transient, is_worth_halving
from rs_aligner.remote.transport import BadAnswer, TransportError, TritonConnection
from rs_aligner.reward.client.trial import JudgeUnreachable, Trial, explained, unreachable
from rs_aligner.reward.protocol import parse_answer
from rs_aligner.reward.token import read_token
from rs_aligner.rollout import Prompt, Rollout, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.config import RemoteRMConfig
    from rs_aligner.reward.client.in_process import LocalJudge
    from rs_aligner.reward.judges import ServedJudge

__all__ = ["JudgeUnreachable", "RemoteGPTRMClient"]

CLOSED = ScoreFailure("the client was closed before the judge answered")
PROBE_SECONDS = 5.0  # for a server that was left out to say that it is ready


class RemoteGPTRMClient:
    """A judge behind the HTTP endpoints of one or more Triton servers; a `protocol.Judge`.

    Works with this project's server and with NeMo-Aligner's, and with `remote_rm.in_process` without any.
    Thread-safe: any number of threads may submit, flush and close, and rows of all of them share batches. To
    be closed at the end, best as a context manager. Nothing is sent and no thread started before it is asked
    for something.

    Args:
        cfg: the `remote_rm` part of the config.
        judge: scores in this process, instead of what the config names; closed with the client. It is called
            by `submit` and `flush`, in the thread that calls them, so a row may wait until `flush`.

    Raises:
        ValueError: the access token cannot be read, or the judge of this process cannot be used.
    """

    def __init__(self, cfg: RemoteRMConfig, judge: ServedJudge | None = None) -> None:
        self._cfg = cfg
        token = read_token("remote_rm.token_file", cfg.token_file)
        self._trial = Trial(cfg, has_token=token is not None)
        self._queue = RowQueue(cfg.max_batch_size, cfg.max_queued)
        self._local = _local_judge(cfg, judge)
        self._asks_here = judge is not None
        self._pool = EndpointPool(_endpoints(cfg, token, self._local), cfg.max_in_flight, self._try_out)
        self._ready = threading.Lock()
        self._is_ready = False
        self._name = uuid.uuid4().hex[:16].encode()
        # What follows is guarded by this lock.
        self._lock = threading.Lock()
        self._num_rows = 0
        self._in_flight: set[Future[Result]] = set()
        self._conversations: set[Connection] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def fingerprint(self) -> str | None:
        """The judge's, as far as it has one and was reached."""
        return self._trial.fingerprint

    def wait_until_ready(self) -> None:
        """Wait until the judge's servers are ready; those that are not in time may join later.

        Raises:
            JudgeUnreachable: none is ready within `remote_rm.startup_timeout` seconds, or the token is wrong.
            ValueError: `remote_rm.mode` is not what the model takes, or the servers are not the same judge.
        """
        with self._ready:
            if self._is_ready or self._closed:
                return
            if self._asks_here:
                self._let_local_in()
            else:
                try:
                    self._pool.open(self._cfg.startup_timeout)
                except TransportError as error:
                    raise unreachable(self._cfg, str(error)) from None
                self._start_senders()
            self._is_ready = True

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Result]:
        """Hand in one rollout to be scored. Waits until the judge is ready, and while the queue is full.

        Returns:
            A future that resolves to the score or the failure; it never raises.

        Raises:
            JudgeUnreachable, ValueError: as `wait_until_ready`.
            RuntimeError: the client is closed.
        """
        if not self._is_ready:
            self.wait_until_ready()
        try:
            row = self._trial.encode(prompt, rollout)
        except (TypeError, ValueError) as error:
            future: Future[Result] = Future()
            future.set_result(ScoreFailure(f"the row cannot be sent to the judge: {error}"))
            return future
        length = len(prompt.token_ids) + len(rollout.token_ids)
        waiting = Waiting(row, length, time.monotonic() + self._cfg.max_wait_seconds, self._next_id())
        if not self._queue.put(waiting):
            raise RuntimeError("the judge's client is closed")
        if self._asks_here:
            self._ask_here(full=True)
        return waiting.future

    def flush(self) -> None:
        """Send what is waiting at once, in batches that may not be full."""
        if self._asks_here:
            self._ask_here(full=False)
        else:
            self._queue.flush()

    def close(self) -> None:
        """Cut requests short and end the threads. Rows without a score get a failure. Safe to call twice."""
        futures = [waiting.future for waiting in self._queue.close()]
        with self._lock:
            self._closed = True
            futures += self._in_flight
            conversations = list(self._conversations)
        self._pool.stop()
        for future in futures:
            _resolve(future, CLOSED)
        for connection in conversations:
            connection.abort()
        self._pool.close()
        if self._local is not None:
            self._local.close()
        for thread in self._threads:
            thread.join(timeout=1.0)  # one that is still connecting ends by itself; it is a daemon

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_local_in(self) -> None:
        """Without a trial, which asks in a thread of its own: who hands a judge over has tried it."""
        assert self._local is not None
        [endpoint] = self._pool.endpoints
        self._trial.trust(endpoint, self._local.offer(0.0), self._local.fingerprint)
        self._pool.let_in(endpoint)

    def _next_id(self) -> bytes:
        """An id that no other row of any client has."""
        with self._lock:
            self._num_rows += 1
            return b"%s-%d" % (self._name, self._num_rows)

    def _start_senders(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._threads = [
                threading.Thread(target=self._send, name=f"judge-{i}", daemon=True)
                for i in range(self._cfg.max_in_flight * len(self._pool.endpoints))
            ]
            for thread in self._threads:
                thread.start()

    def _send(self) -> None:
        """Ask for batches until the client is closed (the life of a sender thread)."""
        while batch := self._queue.take():
            self._answer(batch)

    def _ask_here(self, *, full: bool) -> None:
        """Ask for what waits in this thread: full batches, or all of it."""
        while batch := self._queue.take_now(full=full):
            self._answer(batch)

    def _answer(self, batch: Sequence[Waiting]) -> None:
        """Ask for a batch, and resolve its futures."""
        with self._lock:
            self._in_flight.update(waiting.future for waiting in batch)
        try:
            results = self._ask(batch, Patience(self._cfg))
        except Exception as error:  # a sender that died would leave futures open for ever
            results = [ScoreFailure(f"unexpected {type(error).__name__}: {error}") for _ in batch]
        for waiting, result in zip(batch, results, strict=True):
            _resolve(waiting.future, result)
        with self._lock:
            self._in_flight.difference_update(waiting.future for waiting in batch)

    def _ask(self, batch: Sequence[Waiting], patience: Patience) -> list[Result]:
        """Ask until there is an answer, or no hope or patience is left.

        A batch that may fare better in parts is halved; the halves get what is left of its patience.
        """
        last: Endpoint | None = None
        while True:
            endpoint = self._pool.acquire(avoid=last, outage=patience.outage)
            if endpoint is None:
                reason = CLOSED.reason if self._closed else f"no judge can be asked: {self._pool.why_out()}"
                break
            last = endpoint
            try:
                return self._ask_once(endpoint, batch)
            except (TransportError, BadAnswer) as error:
                reason, hopeless = explained(endpoint, error), not is_transient(error)
                delay = patience.failed()
                halve = is_worth_halving(error, patience.failures, last=delay is None)
            if halve and len(batch) > 1:
                half = len(batch) // 2
                return self._ask(batch[:half], patience) + self._ask(batch[half:], patience)
            if hopeless or delay is None:
                break
            if patience.failures >= self._pool.num_in():  # another server is asked at once
                self._pool.sleep(delay)
        return [ScoreFailure(reason) for _ in batch]

    def _ask_once(self, endpoint: Endpoint, batch: Sequence[Waiting]) -> list[Result]:
        """Ask one server, and tell the pool how it went."""
        ids = [waiting.id for waiting in batch] if endpoint.takes_ids else None
        request = self._trial.request([waiting.row for waiting in batch], ids)
        began = time.monotonic()
        try:
            with self._conversation(endpoint) as connection:
                try:
                    answer = connection.infer(request, self._cfg.request_timeout, batch[0].id.decode())
                except TransportError as error:
                    raise self._second_look(connection, error) from error
            results = parse_answer(answer, len(batch), ids, self._trial.fingerprint)
        except BaseException as error:
            self._pool.failed(endpoint, error)
            raise
        self._trial.good_row = batch[0].row
        self._pool.succeeded(endpoint, len(batch), time.monotonic() - began)
        return results

    def _second_look(self, connection: Connection, error: TransportError) -> TransportError:
        """Why a server refuses a request: a model that is being loaded is a matter of time."""
        if error.kind == "refused" and not is_transient(error):
            problem = connection.problem(PROBE_SECONDS)
            if problem is not None:
                return TransportError(problem, "unreachable")
        return error

    def _try_out(self, endpoint: Endpoint, ready_timeout: float | None) -> None:
        with self._conversation(endpoint) as connection:
            self._trial(endpoint, connection, PROBE_SECONDS if ready_timeout is None else ready_timeout)

    @contextlib.contextmanager
    def _conversation(self, endpoint: Endpoint) -> Iterator[Connection]:
        """A connection that `close` can cut short."""
        connection = endpoint.connect()
        with self._lock:
            if self._closed:
                raise TransportError("the client is closed", "unreachable")
            self._conversations.add(connection)
        try:
            yield connection
        finally:
            with self._lock:
                self._conversations.discard(connection)


def _local_judge(cfg: RemoteRMConfig, judge: ServedJudge | None) -> LocalJudge | None:
    """The judge of this process, if there is to be one."""
    if judge is None and not cfg.in_process:
        return None
    from rs_aligner.reward.client.in_process import LocalJudge  # brings the judges
    from rs_aligner.reward.judges import load_judge

    if judge is None:
        if cfg.judge is None:
            raise ValueError("remote_rm.judge must be set with remote_rm.in_process")
        judge = load_judge(cfg.judge)
    return LocalJudge(judge, cfg.max_batch_size)


def _endpoints(cfg: RemoteRMConfig, token: str | None, local: LocalJudge | None) -> list[Endpoint]:
    if local is not None:
        return [Endpoint("remote_rm.judge", lambda: local)]
    return [
        Endpoint(one.url, partial(TritonConnection, one.ip, one.port, one.name, token)) for one in cfg.servers
    ]


def _resolve(future: Future[Result], result: Result) -> None:
    """Set a result unless somebody was first: `close`, or a caller who cancelled."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)
