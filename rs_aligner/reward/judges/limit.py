"""Judges that are a user's Python code, in processes of their own, with a time limit for each row.

Such code may loop for ever on some text; a thread cannot be stopped, and a signal does not reach code that
waits in C. So a row that takes too long costs a process its life: rows that were with it are then tried one
by one, so that only the guilty row fails. With several workers there are so many such processes, and rows are
spread over them (`spread`); scores and their order are the same whatever their number. Left out on purpose:
functions that are handed over as objects (`callables`), which no other process could find.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rs_aligner.reward.judges.base import Metadata, Tokens
from rs_aligner.reward.judges.spread import Call, Spread
from rs_aligner.reward.judges.worker import Offer, Worker
from rs_aligner.rollout import Score, ScoreFailure

_logger = logging.getLogger("rs_aligner")


class LimitedJudge:
    """A user's judge in processes of its own, of which one is ended when a row takes too long.

    It may be called from several threads at once: their rows share the workers, and each call waits for its
    own rows only.

    Args:
        spec: as `functions.users_judge`.
        kwargs: the judge's settings.
        time_limit: seconds that a row may take; None for no limit.
        workers: how many processes there are.

    Raises:
        ValueError: as `functions.users_judge`.
    """

    def __init__(
        self, spec: str, kwargs: Mapping[str, Any], time_limit: float | None, workers: int = 1
    ) -> None:
        self.takes_calls_at_once = workers > 1  # one gains more by rows that travel together
        self._workers = [Worker(spec, kwargs, time_limit) for _ in range(workers)]
        self._spread = Spread(workers)
        self._lock = threading.Lock()
        self._num_rows, self._num_late, self._num_failed = 0, 0, 0
        offered = self._start_all()
        self.fingerprint = offered.fingerprint
        if offered.takes_tokens:
            self.score_tokens = self._score_tokens
        if offered.warning is not None:
            _logger.warning("%s", offered.warning)
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"judge-worker-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def counters(self) -> dict[str, int]:
        """Rows that took too long, and starts of a worker's process after its first."""
        restarts = sum(max(0, worker.num_starts - 1) for worker in self._workers)
        return {"timed_out_rows": self._num_late, "worker_restarts": restarts}

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Score | ScoreFailure]:
        """Scores; a row that takes too long, or its process with it, is a failure."""
        return self._score("score_texts", prompts, responses, metadata)

    def close(self) -> None:
        """End the processes, whatever they do."""
        for worker in self._workers:
            worker.close()
        self._spread.close()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.end()
        with self._lock:
            if self._num_failed:
                _logger.info("the judge: %s", self._summary())
            self._num_failed = 0  # said once

    def _score_tokens(self, tokens: Tokens, lengths: Tokens) -> Sequence[Score | ScoreFailure]:
        return self._score("score_tokens", tokens, lengths)

    def _score(self, method: str, *columns: Any) -> list[Score | ScoreFailure]:
        call = Call(method, columns)
        self._spread.put(call)
        call.done.wait()
        scores = [score for score in call.scores if score is not None]
        assert len(scores) == len(call.scores)
        failures = [score for score in scores if isinstance(score, ScoreFailure)]
        with self._lock:
            self._num_rows += len(scores)
            self._num_failed += len(failures)
            self._num_late += sum(failure.is_late for failure in failures)
        return scores

    def _summary(self) -> str:
        counts = self.counters
        return (
            f"{self._num_rows} rows, {self._num_failed} without a score, {counts['timed_out_rows']} of them "
            f"for their time; {len(self._workers)} workers, started again {counts['worker_restarts']} times"
        )

    def _start_all(self) -> Offer:
        """Start all workers at once; none is left where one cannot be."""
        with ThreadPoolExecutor(len(self._workers)) as starters:
            starts = [starters.submit(worker.start) for worker in self._workers]
        try:
            offers = [start.result() for start in starts]
        except BaseException:
            for worker in self._workers:
                worker.end()
            raise
        return offers[0]

    def _work(self, number: int) -> None:
        """Score rows with one worker, until there will be no more."""
        worker = self._workers[number]
        while share := self._spread.take(number):
            try:
                scores = worker.ask(share.call.method, share.columns())
            except (TimeoutError, ChildProcessError) as error:
                self._spread.lost(number, share, str(error), late=isinstance(error, TimeoutError))
                self._start_again(number)
            except Exception as error:  # a thread that died would leave its rows open for ever
                reason = f"the judge cannot be asked: {type(error).__name__}: {error}"
                self._spread.found(share, [ScoreFailure(reason)] * share.num_rows)
            else:
                self._spread.found(share, scores)

    def _start_again(self, number: int) -> None:
        """Start a worker before it is needed; what keeps it from starting is told by the next row."""
        try:
            self._workers[number].start_again()
        finally:
            self._spread.started(number)
