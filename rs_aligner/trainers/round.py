"""One round: rollouts are sampled and scored while others are still being generated, and every rank gets all.

The one door to the judges, for training, held-out prompts and files of answers. A collective: every rank
calls it, and where a judge cannot be asked on one of them, all still sample to the end and all hear of it.
Where a stop is asked for, on whichever rank, sampling ends between two tokens, what is in flight at the judge
is waited for a short while, and all ranks end the round as stopped. Policy and judge are known by protocols
only. Left out on purpose: how many failures are too many (`failures`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Lock
from types import MappingProxyType
from typing import NamedTuple

from tqdm import tqdm

from rs_aligner import progress, stopping
from rs_aligner.record.lease import LeaseLost
from rs_aligner.record.ledger_row import Answer, Judged
from rs_aligner.reward.counters import Counters, added, counters_of, gained
from rs_aligner.reward.protocol import Judge
from rs_aligner.rollout import Group, Prompt, Rollout, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.journal import OpenRollouts
from rs_aligner.trainers.protocols import Samples

Pending = Answer | Future[Answer]

VALIDATION = 0  # the step in the seeds of validation rollouts: every validation draws the same numbers
NOT_JUDGED = ScoreFailure("there is no judge")
POLL_SECONDS = 0.5  # between looks whether a stop is asked for
IN_FLIGHT_SECONDS = 5.0  # that a stop waits for what a judge is asked already


class Judges(NamedTuple):
    """Who is asked on this rank: both None on ranks that do not speak for their replica.

    Attributes:
        judge: what scores; None for none.
        watched: a second judge, whose scores decide nothing and whose failures end nothing; None for none.
    """

    judge: Judge | None = None
    watched: Judge | None = None

    def counters(self) -> dict[str, float]:
        """What those of this process have counted, by the figures' names."""
        return {
            f"{prefix}/{name}": number
            for prefix, judge in (("judge", self.judge), ("watched/judge", self.watched))
            for name, number in counters_of(judge).items()
        }


class Share(NamedTuple):
    """What a replica brings to a round.

    Attributes:
        rollouts: that it sampled, with their scores.
        problem: why its judge cannot be asked any more; None if it can.
        broken: why they could not be written down, or not be sampled to the end; None if they are.
        is_stopped: whether its rank was asked to stop.
        counted: what its judges counted meanwhile, by the figures' names.
    """

    rollouts: Sequence[Judged]
    problem: str | None = None
    broken: OSError | LeaseLost | None = None
    is_stopped: bool = False
    counted: Counters = MappingProxyType({})


@dataclass(slots=True)
class Collected:
    """Scored groups, the same on every rank.

    Attributes:
        groups: in the order of the prompts.
        waited: seconds that this rank waited for a judge: while it took rows in, and after the last rollout.
        weights_seconds: that it waited for servers to take the policy's weights.
        failure: why the judge failed too much to go on; None if it did not.
        is_new: whether they are the policy's, not read from a file of answers.
        num_sampled: how many were sampled now, not by an earlier start.
        counted: what the judges of this run's processes counted for it now, by the figures' names.
    """

    groups: list[Group]
    waited: float = 0.0
    weights_seconds: float = 0.0
    failure: str | None = None
    is_new: bool = True
    num_sampled: int = 0
    counted: Counters = field(default_factory=dict)


def sample_and_score(
    policy: Samples,
    request: SampleRequest,
    judges: Judges,
    *,
    what: str,
    is_first: bool = False,
    open_rollouts: OpenRollouts | None = None,
) -> Collected:
    """Every rank's share, gathered; what earlier starts left is not sampled and judged again.

    Args:
        policy: samples.
        request: the same on every rank.
        judges: who is asked; the scores of the second one go into `Group.watched`.
        what: it is called so in messages.
        is_first: whether this is the first rank, which shows its progress.
        open_rollouts: where they are written down as they are scored; None for nowhere.

    Returns:
        The groups, in which rollouts without a judge have `NOT_JUDGED`. The failure is that of a judge that
        could not be asked, on whichever rank.

    Raises:
        OSError: a rollout could not be written down, or servers that sample do not answer any more (a
            `ConnectionError`; what was scored before is kept); every rank raises it.
        Stopped: a rank was asked to stop; the same.
    """
    progress.enter("validating" if request.step == VALIDATION else "sampling")
    notes = open_rollouts or OpenRollouts()
    known = notes.known(request)
    seeds = {key: (one.rollout.seed, one.rollout.policy_version) for key, one in known.items()}
    request = replace(request, known=seeds)
    mine = _Mine(judges, request, notes)
    hidden = None if is_first and progress.shows_bars() else True  # None: shown on a terminal only
    total = len(request.prompts) * request.num_rollouts - len(known)
    progress.begin_round(total)
    unsampled: ConnectionError | None = None
    try:
        rollouts = policy.generate(request)
        for rollout in tqdm(rollouts, what, total, leave=False, disable=hidden, unit=" rollouts"):
            progress.sampled()
            mine.hand_in(rollout)
    except ConnectionError as error:  # of servers that sample; the others wait for this rank
        unsampled = error
    if request.step != VALIDATION:
        progress.enter("scoring")
    results = list(mine.results())
    broken = notes.settle() or unsampled
    shares = policy.gather(Share(results, mine.problem, broken, stopping.is_asked(), mine.counted()))
    for share in shares:
        if share.broken is not None:
            raise share.broken
    if any(share.is_stopped for share in shares):
        raise stopping.Stopped(stopping.reason())
    sampled = {(one.rollout.group, one.rollout.index): one for share in shares for one in share.rollouts}
    groups = [Group(prompt, [], []) for prompt in request.prompts]
    for (place, _), (rollout, score, seen) in sorted({**known, **sampled}.items()):
        groups[place].rollouts.append(rollout)
        groups[place].scores.append(score)
        if seen is not None:
            groups[place].watched.append(seen)
    failure = next((f"{what}: {share.problem}" for share in shares if share.problem is not None), None)
    counted = added(share.counted for share in shares)
    return Collected(
        *(groups, mine.waited, policy.weights_seconds, failure), num_sampled=len(sampled), counted=counted
    )


class _Mine:
    """This rank's rollouts, and what its judges say of them.

    Attributes:
        problem: why the judge cannot be asked any more; None if it can.
        waited: seconds spent in the judges.
    """

    def __init__(self, judges: Judges, request: SampleRequest, notes: OpenRollouts) -> None:
        self._judges, self._before = judges, judges.counters()
        self._judge, self._watched = judges
        self._request, self._notes = request, notes
        self._rollouts: list[_Asked] = []
        self._writing = Lock()
        self.problem: str | None = None
        self.waited = 0.0
        self._until: float | None = None  # when a stop waits no longer

    def hand_in(self, rollout: Rollout) -> None:
        """Ask for a rollout's score; it may wait while too many are on their way."""
        began = time.monotonic()
        prompt = self._request.prompts[rollout.group]
        asked = _Asked(rollout, self._ask(prompt, rollout), self._watch(prompt, rollout))
        self._rollouts.append(asked)
        asked.when_answered(self._write)
        self.waited += time.monotonic() - began

    def results(self) -> Iterator[Judged]:
        """Wait for all scores; where a stop is asked for, only for a while, and leave out what is missing."""
        began = time.monotonic()
        for judge in (self._judge, self._watched):
            if judge is not None:
                judge.flush()
        for asked in self._rollouts:
            score, seen = self._result(asked.score), self._result(asked.watched)
            if score is not None and (asked.watched is None or seen is not None):
                self._write(asked)  # a future tells those who wait before those who want to know
                yield Judged(asked.rollout, score, seen)
        self.waited += time.monotonic() - began

    def counted(self) -> dict[str, float]:
        """What the judges have counted since the round began."""
        return gained(self._before, self._judges.counters())

    def _write(self, asked: _Asked) -> None:
        """Write a rollout down if all its answers are there, once; from any thread."""
        with self._writing:
            if asked.is_answered and not asked.is_written:
                if asked.score is not NOT_JUDGED:
                    progress.judged(failed=isinstance(asked.judged().score, ScoreFailure))
                place = asked.rollout.group
                number = self._request.number(place)
                self._notes.write(self._request.prompts[place], number, asked.judged())
                asked.is_written = True

    def _ask(self, prompt: Prompt, rollout: Rollout) -> Pending:
        if self._judge is None:
            return NOT_JUDGED
        if self.problem is None:
            try:
                return self._judge.submit(prompt, rollout)
            except (ValueError, OSError, RuntimeError) as error:  # no judge, or not the one meant
                self.problem = str(error)
            except stopping.Stopped:  # while it was waited for
                return Future()
        return ScoreFailure(self.problem)  # the others wait for this rank, so it samples to the end

    def _watch(self, prompt: Prompt, rollout: Rollout) -> Pending | None:
        if self._watched is None:
            return None
        try:
            return self._watched.submit(prompt, rollout)
        except (ValueError, OSError, RuntimeError) as error:
            return ScoreFailure(str(error))
        except stopping.Stopped:
            return Future()

    def _result(self, pending: Pending | None) -> Answer | None:
        """The answer; None where nobody was asked, or it did not come in the time that a stop leaves."""
        if not isinstance(pending, Future):
            return pending
        while True:
            seconds = POLL_SECONDS
            if stopping.is_asked():
                if self._until is None:
                    spare = stopping.seconds_left() - stopping.MARGIN * stopping.longest_save()
                    self._until = time.monotonic() + min(IN_FLIGHT_SECONDS, spare)
                seconds = self._until - time.monotonic()
            try:
                answer = pending.result(max(seconds, 0.0))
            except TimeoutError:
                if self._until is not None:
                    return None
            else:
                progress.note()
                return answer


class _Asked:
    """A rollout, and the answers that it waits for."""

    def __init__(self, rollout: Rollout, score: Pending, watched: Pending | None) -> None:
        self.rollout, self.score, self.watched = rollout, score, watched
        self.is_written = False

    def judged(self) -> Judged:
        """With its answers, which are there."""
        seen = None if self.watched is None else _result(self.watched)
        return Judged(self.rollout, _result(self.score), seen)

    @property
    def is_answered(self) -> bool:
        """Whether all answers are there."""
        return all(future.done() for future in self._futures)

    def when_answered(self, then: Callable[[_Asked], None]) -> None:
        """Call it when all answers are there, from whichever thread has the last; it may be called twice."""
        for future in self._futures:
            future.add_done_callback(lambda _: then(self))
        if self.is_answered:
            then(self)

    @property
    def _futures(self) -> list[Future[Answer]]:
        return [answer for answer in (self.score, self.watched) if isinstance(answer, Future)]


def _result(pending: Pending) -> Answer:
    return pending.result() if isinstance(pending, Future) else pending
