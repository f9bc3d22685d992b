"""Where others place the best by a judge, and the alarm when they lose sight of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch

from rs_aligner.midranks import midranks
from rs_aligner.proof.tail import Tails, tail_metrics
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Selection
from rs_aligner.trainers.measure import Teller

pytestmark = pytest.mark.timeout(60)


def a_group(
    rewards: Sequence[float | None], watched: Sequence[float | None] = (), **parts: Sequence[float]
) -> Group:
    rollouts = [Rollout(0, n, (n,), "", "stop") for n in range(len(rewards))]

    def results(values: Sequence[float | None]) -> list[Score | ScoreFailure]:
        return [ScoreFailure("no") if value is None else Score(value) for value in values]

    scores = [
        Score(score.reward, {name: values[n] for name, values in parts.items()})
        if isinstance(score, Score)
        else score
        for n, score in enumerate(results(rewards))
    ]
    return Group(Prompt("p", "", (1,)), rollouts, scores, results(watched))


def kept(*rows: Sequence[int]) -> Selection:
    return Selection(torch.tensor(rows, dtype=torch.bool), ())


def test_where_the_watched_judge_places_what_is_kept_by_hand():
    groups = [
        a_group([4, 3, 2, 1], [0.4, 0.3, 0.2, 0.1]),  # above all others
        a_group([4, 3, 2, 1], [0.1, 0.2, 0.3, 0.4]),  # below all others
        a_group([4, 3, 2, None], [0.2, 0.1, None, 0.9]),  # above the only other that both scored
        a_group([4, 3, 2, 1], [1, 1, 1, 1]),  # tells nothing apart
    ]
    found = tail_metrics(groups, kept(*[[1, 0, 0, 0]] * 4))
    chance = [math.sqrt(5 / 9), math.sqrt(5 / 9), 1.0]  # of ranks 1 to 4 about 2.5 over 1.5, of 1 and 2
    assert found == {
        "tail/watched": pytest.approx((1 - 1 + 1) / 3),
        "tail/watched_error": pytest.approx(math.sqrt(sum(c * c for c in chance)) / 3),
        "tail/watched_gap": pytest.approx((1.5 + 1.5 + 0.5) / 3),
    }


def test_without_another_judge_or_another_rollout_there_is_nothing_to_say():
    assert tail_metrics([a_group([1, 2])] * 3, kept(*[[0, 1]] * 3)) == {}
    both = [a_group([1, 2], [1, 2])] * 3
    assert tail_metrics(both, kept(*[[1, 1]] * 3)) == {}  # all are kept
    assert tail_metrics(both, kept(*[[0, 0]] * 3)) == {}
    assert tail_metrics(both[:1], kept([0, 1])) == {}  # one group has no spread
    assert tail_metrics(both, kept(*[[0, 1]] * 3))["tail/watched"] == 1
    assert tail_metrics([a_group([1, 2])] * 3, kept(*[[0, 1]] * 3), ["first", "second"]) == {}


def test_the_best_by_each_judge_are_placed_by_the_others():
    # The first pays for something in the first rollout that neither of the others sees.
    one = a_group([0, 0, 0], first=[9, 2, 1], second=[1, 3, 2], third=[10, 30, 20])
    found = tail_metrics([one] * 4, kept(*[[1, 0, 0]] * 4), ["first", "second", "third"])
    assert found["tail/first"] == -1
    assert found["tail/first_gap"] == 5
    assert (
        found["tail/second"] == found["tail/third"] == 1.0
    )  # in the middle for one, and above for the other
    assert found["tail/third_gap"] == 10
    lacking = Group(one.prompt, one.rollouts, [*one.scores[:2], Score(1.0)])
    assert tail_metrics([lacking] * 4, kept(*[[1, 0, 0]] * 4), ["first", "second"])["tail/first"] == -1


@pytest.mark.parametrize("seen", [[1, 2, 3, 4, 5], [1, 1, 1, 2, 7], [0, 0, 1, 1, 1]])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_error_is_that_of_a_choice_by_chance(seen, number):
    ranks, most = midranks(seen), (5 - number) / 2
    places = [(fmean(ranks[n] for n in some) - 3) / most for some in combinations(range(5), number)]
    assert fmean(places) == pytest.approx(0)
    keep = [int(n < number) for n in range(5)]
    found = tail_metrics([a_group([5, 4, 3, 2, 1], seen)] * 9, kept(*[keep] * 9))
    assert found["tail/watched_error"] == pytest.approx(pstdev(places) / 3)


def figures(step: int, place: float, gap: float = 1.0, error: float = 0.05) -> dict[str, float]:
    return {"step": step, "tail/watched": place, "tail/watched_error": error, "tail/watched_gap": gap}


def said(*steps: tuple[float, ...]) -> list[int]:
    """The steps with a warning."""
    tails = Tails()
    return [n for n, one in enumerate(steps, 1) if tails.observe(figures(n, *one))]


def test_a_tail_that_others_lose_sight_of_brings_one_alarm():
    assert said((0.9,), (0.8,), (0.6,), (0.1,), (0.0,), (-0.1,)) == [4]
    assert said((0.9,), (0.0,), (0.9,), (0.0,)) == [2, 4]  # it was gone, and comes again
    assert said((0.9,), (0.0,), (0.3,), (0.0,)) == [2]


def test_the_alarm_says_what_was_seen_then_and_now_and_what_helps():
    tails = Tails()
    assert not tails.observe(figures(1, 0.9, gap=1.5))
    (told,) = tails.observe(figures(7, -0.1, gap=1.25))
    assert tails.lost == ["watched"]
    assert told.startswith(
        "the best of N lie in a tail that only one judge sees: the watched judge places what "
    )
    assert "at -0.10 now, at 0.90 at step 1 " in told
    assert "better than the mean by 1.25, 1.5 then; keep what two judges find good (pessimistic)" in told


def test_what_is_no_sign_brings_no_alarm():
    assert said((0.9,), (0.5,), (0.46,)) == []  # more than half is left
    assert said((0.9, 1.0), (0.0, 0.4), (0.0, 0.1)) == []  # there is little left to tell apart, for both
    assert said((0.9, 1.0, 0.4), (0.0, 1.0, 0.4)) == []  # too few groups to say
    assert said((-0.2,), (-0.1,), (0.0,), (-0.1,)) == []  # judges that never agreed


def test_each_judge_has_an_alarm_of_its_own_that_names_it():
    tails, rows = Tails(), []
    for step, (first, second) in enumerate([(0.9, 0.9), (0.9, 0.8), (0.0, 0.8)], 1):
        row: dict[str, float] = {"step": step}
        for name, place in (("first", first), ("a/b", second)):
            row |= {f"tail/{name}": place, f"tail/{name}_error": 0.05, f"tail/{name}_gap": 1.0}
        rows.append(tails.observe(row))
    assert [len(row) for row in rows] == [0, 0, 1]
    assert "others place the best by first at 0.00 now" in rows[-1][0]
    assert tails.lost == ["first"]


def simulated(
    quality: Callable[[int], float], runs: int, steps: int = 60, groups: int = 24, n: int = 8
) -> int:
    """Runs with an alarm, of judges that see the same quality, each with noise of its own."""
    rng, alarms = np.random.default_rng(7), 0
    error = math.sqrt((n * n - 1) / 12) / ((n - 1) / 2) / math.sqrt(groups)
    for _ in range(runs):
        tails = Tails()
        for step in range(1, steps + 1):
            good = quality(step) * rng.normal(size=(groups, n))
            first, second = (good + rng.normal(size=(groups, n)) for _ in range(2))
            best = first.argmax(1)
            below = (second < second[np.arange(groups), best][:, None]).sum(1)
            place = float((below / ((n - 1) / 2) - 1).mean())
            gap = float((first.max(1) - first.mean(1)).mean())
            if tails.observe(figures(step, place, gap, error)):
                alarms += 1
                break
    return alarms


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.5, 5.0])
def test_judges_that_agree_as_they_always_did_do_not_cry_wolf(quality):
    assert simulated(lambda _: quality, runs=100) <= 3  # at most 1 % are allowed; more than 3 of 100 in 2 %


def test_a_judge_of_which_only_noise_is_left_is_told():
    assert simulated(lambda step: 4.0 if step < 5 else 0.0, runs=10, groups=64) == 0  # its gap closes, too
    assert simulated(lambda step: 1.0 if step < 5 else 0.0, runs=10, groups=256) == 10


def test_the_log_has_the_alarm_also_where_the_run_was_started_again(caplog):
    rest = {"rollouts/kept": 9, "rollouts/total": 9}
    rest |= {f"time/{part}": 0.0 for part in ("step", "weights", "generate", "score_wait", "train")}
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        Teller(9, 1, lambda: [figures(1, 0.9), figures(2, 0.9), figures(3, 0.0)]).tell(figures(3, 0.0) | rest)
        assert len(caplog.records) == 1
        Teller(9, 1, lambda: [figures(1, 0.9), figures(2, 0.0)]).tell(figures(3, 0.0) | rest)
        Teller(9, 1).tell(figures(3, 0.0) | rest)
    assert ["a tail that only one judge sees" in record.getMessage() for record in caplog.records] == [True]
