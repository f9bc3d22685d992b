"""One round: rollouts are sampled and scored while others are still being generated, and every rank gets all.

The one door to the judges, for training, held-out prompts and files of answers. A collective: every rank
calls it, and where a judge cannot be asked on one of them, all still sample to the end and all hear of it.
Where a stop is asked for, on whichever rank, sampling ends between two tokens, what is in flight at the judge
is waited for a short while, and all ranks end the round as stopped. Policy and judge are known by protocols
only. Left out on purpose: how many failures are too many (`failures`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from tqdm import tqdm

from rs_aligner import progress, stopping
from rs_aligner.reward.protocol import Judge
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.protocols import Samples

Answer = Score | ScoreFailure
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


@dataclass(slots=True)
class Collected:
    """Scored groups, the same on every rank.

    Attributes:
        groups: in the order of the prompts.
        waited: seconds that this rank waited for a judge: while it took rows in, and after the last rollout.
        failure: why the judge failed too much to go on; None if it did not.
        is_new: whether they were sampled now, not read.
    """

    groups: list[Group]
    waited: float = 0.0
    failure: str | None = None
    is_new: bool = True


def sample_and_score(
    policy: Samples,
    request: SampleRequest,
    judges: Judges,
    *,
    what: str,
    is_first: bool = False,
) -> Collected:
    """Every rank's share, gathered.

    Args:
        policy: samples.
        request: the same on every rank.
        judges: who is asked; the scores of the second one go into `Group.watched`.
        what: it is called so in messages.
        is_first: whether this is the first rank, which shows its progress.

    Returns:
        The groups, in which rollouts without a judge have `NOT_JUDGED`. The failure is that of a judge that
        could not be asked, on whichever rank.

    Raises:
        Stopped: a rank was asked to stop; every rank raises it.
    """
    progress.enter("validating" if request.step == VALIDATION else "sampling")
    mine = _Mine(judges)
    hidden = None if is_first else True  # None: shown on a terminal only
    total = len(request.prompts) * request.num_rollouts
    for rollout in tqdm(policy.generate(request), what, total, leave=False, disable=hidden, unit=" rollouts"):
        mine.hand_in(request.prompts[rollout.group], rollout)
    if request.step != VALIDATION:
        progress.enter("scoring")
    gathered = policy.gather((list(mine.results()), mine.problem, stopping.is_asked()))
    if any(is_stopped for *_, is_stopped in gathered):
        raise stopping.Stopped(stopping.reason())
    everyone = [item for replica, *_ in gathered for item in replica]
    everyone.sort(key=lambda item: (item[0].group, item[0].index))
    groups = [Group(prompt, [], []) for prompt in request.prompts]
    for rollout, result, seen in everyone:
        groups[rollout.group].rollouts.append(rollout)
        groups[rollout.group].scores.append(result)
        if seen is not None:
            groups[rollout.group].watched.append(seen)
    failure = next((f"{what}: {text}" for _, text, _ in gathered if text is not None), None)
    return Collected(groups, mine.waited, failure)


class _Mine:
    """This rank's rollouts, and what its judges say of them.

    Attributes:
        problem: why the judge cannot be asked any more; None if it can.
        waited: seconds spent in the judges.
    """

    def __init__(self, judges: Judges) -> None:
        self._judge, self._watched = judges
        self._rollouts: list[tuple[Rollout, Pending, Pending | None]] = []
        self.problem: str | None = None
        self.waited = 0.0
        self._until: float | None = None  # when a stop waits no longer

    def hand_in(self, prompt: Prompt, rollout: Rollout) -> None:
        """Ask for a rollout's score; it may wait while too many are on their way."""
        began = time.monotonic()
        self._rollouts.append((rollout, self._ask(prompt, rollout), self._watch(prompt, rollout)))
        self.waited += time.monotonic() - began

    def results(self) -> Iterator[tuple[Rollout, Answer, Answer | None]]:
        """Wait for all scores; where a stop is asked for, only for a while, and leave out what is missing."""
        began = time.monotonic()
        for judge in (self._judge, self._watched):
            if judge is not None:
                judge.flush()
        for rollout, score, seen in self._rollouts:
            result, of_watched = self._result(score), None if seen is None else self._result(seen)
            if result is not None and (seen is None or of_watched is not None):
                yield rollout, result, of_watched
        self.waited += time.monotonic() - began

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

    def _result(self, pending: Pending) -> Answer | None:
        """The answer; None where it did not come in the time that a stop leaves."""
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
