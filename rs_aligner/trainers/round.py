"""One round: rollouts are sampled and scored while others are still being generated, and every rank gets all.

The one door to the judges, for training, held-out prompts and files of answers. A collective: every rank
calls it, and where a judge cannot be asked on one of them, all still sample to the end and all hear of it.
Policy and judge are known by protocols only. Left out on purpose: how many failures are too many
(`failures`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from tqdm import tqdm

from rs_aligner.reward.protocol import Judge
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.protocols import Samples

Answer = Score | ScoreFailure
Pending = Answer | Future[Answer]

VALIDATION = 0  # the step in the seeds of validation rollouts: every validation draws the same numbers
NOT_JUDGED = ScoreFailure("there is no judge")


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
    """
    mine = _Mine(judges)
    hidden = None if is_first else True  # None: shown on a terminal only
    total = len(request.prompts) * request.num_rollouts
    for rollout in tqdm(policy.generate(request), what, total, leave=False, disable=hidden, unit=" rollouts"):
        mine.hand_in(request.prompts[rollout.group], rollout)
    gathered = policy.gather((list(mine.results()), mine.problem))
    everyone = [item for replica, _ in gathered for item in replica]
    everyone.sort(key=lambda item: (item[0].group, item[0].index))
    groups = [Group(prompt, [], []) for prompt in request.prompts]
    for rollout, result, seen in everyone:
        groups[rollout.group].rollouts.append(rollout)
        groups[rollout.group].scores.append(result)
        if seen is not None:
            groups[rollout.group].watched.append(seen)
    failure = next((f"{what}: {text}" for _, text in gathered if text is not None), None)
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

    def hand_in(self, prompt: Prompt, rollout: Rollout) -> None:
        """Ask for a rollout's score; it may wait while too many are on their way."""
        began = time.monotonic()
        self._rollouts.append((rollout, self._ask(prompt, rollout), self._watch(prompt, rollout)))
        self.waited += time.monotonic() - began

    def results(self) -> Iterator[tuple[Rollout, Answer, Answer | None]]:
        """Wait for all scores."""
        began = time.monotonic()
        for judge in (self._judge, self._watched):
            if judge is not None:
                judge.flush()
        for rollout, score, seen in self._rollouts:
            yield rollout, _result(score), None if seen is None else _result(seen)
        self.waited += time.monotonic() - began

    def _ask(self, prompt: Prompt, rollout: Rollout) -> Pending:
        if self._judge is None:
            return NOT_JUDGED
        if self.problem is None:
            try:
                return self._judge.submit(prompt, rollout)
            except (ValueError, OSError, RuntimeError) as error:  # no judge, or not the one meant
                self.problem = str(error)
        return ScoreFailure(self.problem)  # the others wait for this rank, so it samples to the end

    def _watch(self, prompt: Prompt, rollout: Rollout) -> Pending | None:
        if self._watched is None:
            return None
        try:
            return self._watched.submit(prompt, rollout)
        except (ValueError, OSError, RuntimeError) as error:
            return ScoreFailure(str(error))


def _result(pending: Pending) -> Answer:
    return pending.result() if isinstance(pending, Future) else pending
