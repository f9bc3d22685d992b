"""Asks a remote judge for scores while the policy is still generating.

Rollouts are handed in one by one and wait until a batch is full or the oldest has waited long enough. A few
sender threads post batches, so that many small requests never run the service over, and results come back
through futures. A request that fails fails its rows, with the reason; what to do about it (try again, ask
another server) is decided by whoever reads the future, and belongs in `_score` once it comes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rs_aligner.reward.protocol import Arrays, Mode, Row, parse_rewards, text_request, token_request
from rs_aligner.reward.transport import TransportError, TritonConnection
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rs_aligner.config import RemoteRMConfig

Result = Score | ScoreFailure

# Rows may wait for this many rounds of requests in flight; then `submit` makes the generator wait.
QUEUE_ROUNDS = 16
POLL_SECONDS = 0.2
CLOSED = ScoreFailure("the client was closed before the judge answered")


class JudgeUnreachable(ConnectionError):
    """No judge answers at the configured address; the message says what to change."""


@dataclass(slots=True)
class _Waiting:
    """A row that is not sent yet."""

    row: Row
    due: float
    future: Future[Result] = field(default_factory=Future)


class RemoteGPTRMClient:
    """A judge behind Triton's HTTP endpoint; a `protocol.Judge`.

    Works with this project's server and with NeMo-Aligner's. Thread-safe. To be closed at the end, best as
    a context manager. Nothing is sent and no thread started before the judge is ready.

    Args:
        cfg: the `remote_rm` part of the config.
    """

    def __init__(self, cfg: RemoteRMConfig) -> None:
        self._cfg = cfg
        self._build: Callable[[Sequence[Row]], Arrays] | None = None
        self._ready_lock = threading.Lock()
        # What follows is guarded by this lock.
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # a sender has something to send, or to wait for
        self._room = threading.Condition(self._lock)  # there is room for another row
        self._waiting: deque[_Waiting] = deque()
        self._in_flight: set[Future[Result]] = set()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._connections: list[TritonConnection] = []

    def wait_until_ready(self) -> None:
        """Wait until the judge's model is loaded, and learn which kind of request it takes.

        Raises:
            JudgeUnreachable: it is not ready within `remote_rm.startup_timeout` seconds.
            ValueError: `remote_rm.mode` is not what the model takes.
        """
        with self._ready_lock:
            if self._build is not None:
                return
            connection = self._connect()
            deadline = time.monotonic() + self._cfg.startup_timeout
            while True:
                left = max(deadline - time.monotonic(), 0.01)
                problem = connection.problem(left)
                if problem is None:
                    try:
                        names = connection.input_names(left)
                        break
                    except TransportError as error:
                        problem = str(error)
                if time.monotonic() + POLL_SECONDS >= deadline:
                    raise JudgeUnreachable(self._unreachable(problem))
                time.sleep(POLL_SECONDS)
            if self._mode(names) == "text":
                self._build = text_request
            else:
                self._build = partial(token_request, pad_to_length=self._cfg.pad_to_length)
            self._start_senders()

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Result]:
        """Hand in one rollout to be scored. Waits until the judge is ready, and while the queue is full.

        Returns:
            A future that resolves to the score or the failure; it never raises.

        Raises:
            JudgeUnreachable, ValueError: as `wait_until_ready`.
            RuntimeError: the client is closed.
        """
        if self._build is None:
            self.wait_until_ready()
        assert self._build is not None
        waiting = _Waiting((prompt, rollout), time.monotonic() + self._cfg.max_wait_seconds)
        try:
            self._build([waiting.row])  # a row that cannot be sent must not spoil the others of its batch
        except (TypeError, ValueError) as error:
            waiting.future.set_result(ScoreFailure(f"the row cannot be sent to the judge: {error}"))
            return waiting.future
        room = QUEUE_ROUNDS * self._cfg.max_in_flight * self._cfg.max_batch_size
        with self._lock:
            self._room.wait_for(lambda: self._closed or len(self._waiting) < room)
            if self._closed:
                raise RuntimeError("the judge's client is closed")
            self._waiting.append(waiting)
            # One sender watches the first row's clock; the others need not wake before a batch is full.
            if len(self._waiting) == 1 or len(self._waiting) >= self._cfg.max_batch_size:
                self._work.notify()
        return waiting.future

    def flush(self) -> None:
        """Send what is waiting at once, in batches that may not be full."""
        with self._lock:
            for waiting in self._waiting:
                waiting.due = 0.0
            self._work.notify_all()

    def close(self) -> None:
        """Cut requests short and end the threads. Rows without a score get a failure. Safe to call twice."""
        with self._lock:
            self._closed = True
            futures = [waiting.future for waiting in self._waiting] + list(self._in_flight)
            self._waiting.clear()
            self._work.notify_all()
            self._room.notify_all()
        for future in futures:
            _resolve(future, CLOSED)
        for connection in self._connections:
            connection.abort()
        for thread in self._threads:
            thread.join(timeout=1.0)  # one that is still connecting ends by itself; it is a daemon

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> TritonConnection:
        model = self._cfg.reward_model
        return TritonConnection(model.ip, model.port, model.name)

    def _start_senders(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._connections = [self._connect() for _ in range(self._cfg.max_in_flight)]
            self._threads = [
                threading.Thread(target=self._send, args=(connection,), name=f"judge-{i}", daemon=True)
                for i, connection in enumerate(self._connections)
            ]
            for thread in self._threads:
                thread.start()

    def _send(self, connection: TritonConnection) -> None:
        """Post batches until the client is closed (the life of a sender thread)."""
        while batch := self._next_batch():
            results = self._score(connection, [waiting.row for waiting in batch])
            for waiting, result in zip(batch, results, strict=True):
                _resolve(waiting.future, result)
            with self._lock:
                self._in_flight.difference_update(waiting.future for waiting in batch)

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a full batch, or one whose oldest row is due. Empty once the client is closed."""
        size = self._cfg.max_batch_size
        with self._lock:
            while not self._closed:
                if not self._waiting:
                    self._work.wait()
                    continue
                time_left = self._waiting[0].due - time.monotonic()
                if len(self._waiting) < size and time_left > 0:
                    self._work.wait(time_left)
                    continue
                batch = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
                self._room.notify_all()
                if self._waiting:
                    self._work.notify()  # somebody has to watch the clock of what is left
                batch = [waiting for waiting in batch if waiting.future.set_running_or_notify_cancel()]
                if batch:
                    self._in_flight.update(waiting.future for waiting in batch)
                    return batch
            return []

    def _score(self, connection: TritonConnection, rows: Sequence[Row]) -> list[Result]:
        """Ask once for these rows. Never raises: a sender that died would leave futures open for ever."""
        assert self._build is not None
        try:
            answer = connection.infer(self._build(rows), self._cfg.request_timeout)
            return parse_rewards(answer, len(rows))
        except TransportError as error:
            reason = str(error)
        except Exception as error:
            reason = f"unexpected {type(error).__name__}: {error}"
        return [ScoreFailure(reason) for _ in rows]

    def _mode(self, names: set[str]) -> Mode:
        """Text or tokens, as configured or as the model's inputs allow."""
        takes: dict[Mode, bool] = {"text": "prompts" in names, "tokens": "tokens" in names}
        possible = [mode for mode, fits in takes.items() if fits]
        if self._cfg.mode == "auto" and possible:
            return possible[0]
        if self._cfg.mode != "auto" and self._cfg.mode in possible:
            return self._cfg.mode
        raise ValueError(
            f"remote_rm.mode={self._cfg.mode} does not fit the judge at {self._address()}: its inputs are "
            f"{', '.join(sorted(names))}; "
            + (f"set remote_rm.mode={possible[0]} or auto" if possible else "it is no judge")
        )

    def _address(self) -> str:
        model = self._cfg.reward_model
        return f"http://{model.ip}:{model.port}/v2/models/{model.name}"

    def _unreachable(self, problem: str) -> str:
        model = self._cfg.reward_model
        return (
            f"no judge is ready at {self._address()} after {self._cfg.startup_timeout:g} s: {problem}. "
            f"Start one with `python examples/serve_reward.py inference.port={model.port} "
            f"inference.model_name={model.name} judge.function=path/to/file.py:name`, or correct "
            "remote_rm.reward_model.ip, .port or .name, or raise remote_rm.startup_timeout if it is still "
            "starting"
        )


def _resolve(future: Future[Result], result: Result) -> None:
    """Set a result unless somebody was first: `close`, or a caller who cancelled."""
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)
