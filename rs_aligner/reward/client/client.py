"""Asks a judge for scores while the policy is still generating.

Rollouts are handed in one by one and results come back through futures; how batches of them find a server,
and are asked again, is `remote.asking`. Here is what is a judge's: what it has to show first (`trial`), how a
rollout becomes a row, and what an answer says (`protocol`). What has no score gets a failure with its reason.
Whether a run goes on with so many failures is for the trainer to say.

A judge that is handed over as an object, `rs_aligner.train`'s `reward_fn`, is asked in the thread that hands
rows in, whenever a batch is full: users' code may rely on the main thread, as `signal.alarm` does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rs_aligner.remote.asking import PROBE_SECONDS, Asker, Asking
from rs_aligner.remote.endpoint import Endpoint, Role
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.queue import Waiting
from rs_aligner.remote.retry import AskError, is_transient
from rs_aligner.remote.token import read_token
from rs_aligner.remote.triton import Connection, TritonConnection
from rs_aligner.reward.client.trial import JudgeUnreachable, Trial, explained, unreachable
from rs_aligner.reward.protocol import JUDGE_TOKEN, parse_answer
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.config import RemoteRMConfig
    from rs_aligner.reward.client.in_process import LocalJudge
    from rs_aligner.reward.judges import ServedJudge

__all__ = ["JudgeUnreachable", "RemoteGPTRMClient"]

Result = Score | ScoreFailure
JUDGE = Role("judge", "scores")


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
        token = read_token("remote_rm.token_file", cfg.token_file, JUDGE_TOKEN)
        self._trial = Trial(cfg, has_token=token is not None)
        self._local = _local_judge(cfg, judge)
        self._asks_here = judge is not None
        self._asker: Asker[Any, Result, Connection] = Asker(
            _Scoring(cfg, self._trial),
            _endpoints(cfg, token, self._local),
            _asking(cfg, self._local),
            here=self._asks_here,
        )
        self._ready = threading.Lock()
        self._is_ready = False

    @property
    def fingerprint(self) -> str | None:
        """The judge's, as far as it has one and was reached."""
        local = None if self._local is None else self._local.fingerprint
        return self._trial.fingerprint or local

    @property
    def counters(self) -> dict[str, float]:
        """What a judge of this process has counted; a server's are on its `/metrics`."""
        return {} if self._local is None else self._local.counters

    @property
    def is_local(self) -> bool:
        """Whether the judge is in this process, where nobody has to be waited for."""
        return self._local is not None

    def wait_until_ready(self) -> None:
        """Wait until the judge's servers are ready; those that are not in time may join later.

        Raises:
            JudgeUnreachable: none is ready within `remote_rm.startup_timeout` seconds, or the token is wrong.
            ValueError: `remote_rm.mode` is not what the model takes, or the servers are not the same judge.
        """
        with self._ready:
            if self._is_ready or self._asker.is_stopped:
                return
            if self._asks_here:
                assert self._local is not None  # who hands a judge over has tried it
                self._trial.trust(self._asker.open_here(), self._local.offer(0.0), self._local.fingerprint)
            else:
                try:
                    self._asker.open(self._cfg.startup_timeout)
                except TransportError as error:
                    raise unreachable(self._cfg, str(error)) from None
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
        return self._asker.submit(row, len(prompt.token_ids) + len(rollout.token_ids))

    def flush(self) -> None:
        """Send what is waiting at once, in batches that may not be full."""
        self._asker.flush()

    def close(self) -> None:
        """Cut requests short and end the threads. Rows without a score get a failure. Safe to call twice."""
        self._asker.stop()
        if self._local is not None:
            self._local.close()
        self._asker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Scoring:
    """What servers are asked for here: a score for each row. A `remote.asking.Service`.

    Args:
        cfg: the `remote_rm` part of the config.
        trial: of the servers, which knows how rows are sent.
    """

    def __init__(self, cfg: RemoteRMConfig, trial: Trial) -> None:
        self._cfg, self._trial = cfg, trial

    def try_out(self, endpoint: Endpoint[Connection], link: Connection, ready_timeout: float) -> None:
        """As `Trial`."""
        self._trial(endpoint, link, ready_timeout)

    def ask(
        self, endpoint: Endpoint[Connection], link: Connection, batch: Sequence[Waiting[Any, Result]]
    ) -> list[Result]:
        """Ask for a batch, and check the answer."""
        ids = [waiting.id for waiting in batch] if self._trial.takes_ids(endpoint) else None
        request = self._trial.request([waiting.row for waiting in batch], ids)
        try:
            answer = link.infer(request, self._cfg.request_timeout, batch[0].id.decode())
        except TransportError as error:
            raise _second_look(link, error) from error
        results = parse_answer(answer, len(batch), ids, self._trial.fingerprint)
        self._trial.good_row = batch[0].row
        return results

    def explained(self, endpoint: Endpoint[Connection], error: AskError) -> str:
        """With the key that may mend it."""
        return explained(endpoint, error)

    def failure(self, reason: str) -> Result:
        """Never a number."""
        return ScoreFailure(reason)


def _second_look(link: Connection, error: TransportError) -> TransportError:
    """Why a server refuses a request: a model that is being loaded is a matter of time."""
    if error.kind == "refused" and not is_transient(error):
        problem = link.problem(PROBE_SECONDS)
        if problem is not None:
            return TransportError(problem, "unreachable")
    return error


def _asking(cfg: RemoteRMConfig, local: LocalJudge | None) -> Asking:
    alone = None if local is None else local.rows_at_once
    return Asking(
        batch_size=cfg.max_batch_size if alone is None else 1,
        wait_seconds=cfg.max_wait_seconds,
        room=cfg.max_queued,
        in_flight=cfg.max_in_flight if alone is None else alone,
        give_up_after=cfg.give_up_after if cfg.on_failure == "retry" else None,
        attempts=cfg.max_attempts,
        role=JUDGE,
    )


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


def _endpoints(
    cfg: RemoteRMConfig, token: str | None, local: LocalJudge | None
) -> list[Endpoint[Connection]]:
    if local is not None:
        return [Endpoint("remote_rm.judge", lambda: local)]
    ask = partial(TritonConnection, token=token, called=JUDGE.name, authority=cfg.ca_file)
    return [Endpoint(one.url, partial(ask, one.address, one.name)) for one in cfg.servers]
