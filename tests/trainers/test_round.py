"""One round of sampling and judging by itself; what steps make of it: `test_rs.py` and `test_pool.py`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rs_aligner.config import LengthParams, SamplingParams
from rs_aligner.record.ledger_row import Judged
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.journal import OpenRollouts
from rs_aligner.trainers.round import NOT_JUDGED, Collected, Judges, sample_and_score
from tests.fake_run import Exchange, FakeJudge, FakePolicy, by_tokens

PROMPTS = [Prompt(f"p{i}", f"text {i}", (100 + i,), position=i) for i in range(5)]
REQUEST = SampleRequest(PROMPTS, 3, SamplingParams(), LengthParams(), step=1, first_index=2)


def rounds(*replicas: dict[str, Any], is_first: bool = False) -> list[Collected]:
    """What each of so many replicas comes to; each with its `judge` and `watched`."""
    exchange, found = Exchange(len(replicas)), dict[int, Collected]()

    def run(number: int) -> None:
        policy = FakePolicy([], 4, exchange, number)
        judges = Judges(**replicas[number])
        found[number] = sample_and_score(policy, REQUEST, judges, what="step 1", is_first=is_first)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(replicas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return [found[number] for number in range(len(replicas))]


def judge(score: Any = by_tokens) -> FakeJudge:
    return FakeJudge(score, [], 0.0)


def unreachable() -> FakeJudge:
    nobody = judge()
    nobody.unreachable_from = 1
    return nobody


def test_every_replica_has_all_rollouts_in_order_with_the_scores_that_others_asked_for() -> None:
    one, other = rounds({"judge": judge()}, {"judge": judge()})
    assert one.groups == other.groups
    assert [group.prompt for group in one.groups] == PROMPTS
    for place, group in enumerate(one.groups):
        assert [(r.group, r.index) for r in group.rollouts] == [(place, index) for index in (2, 3, 4)]
        assert group.scores == [by_tokens(group.prompt, rollout) for rollout in group.rollouts]
        assert group.watched == []
    (alone,) = rounds({"judge": judge()})
    assert alone.groups == one.groups
    assert alone.failure is one.failure is None


def test_without_a_judge_there_are_rollouts_and_no_numbers() -> None:
    (found,) = rounds({"judge": None})
    assert [group.scores for group in found.groups] == [[NOT_JUDGED] * 3] * 5
    assert found.failure is None


def test_a_judge_that_one_replica_cannot_ask_fails_its_rows_and_every_replica_hears_why() -> None:
    found = rounds({"judge": judge()}, {"judge": unreachable()})
    why = "no judge is ready at http://nowhere"
    for one in found:
        assert one.failure == f"step 1: {why}"
        for place, group in enumerate(one.groups):
            kinds = {type(score) for score in group.scores}
            assert kinds == ({ScoreFailure} if place % 2 else {Score})
            assert len(group.rollouts) == 3
        assert set(one.groups[1].scores) == {ScoreFailure(why)}


class CutShort(FakePolicy):
    """Samples at servers that go away behind the first rollouts of one replica."""

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        for number, rollout in enumerate(super().generate(request)):
            if self.replica == 1 and number == 2:
                raise ConnectionError("no vLLM server can be asked")
            yield rollout


def test_servers_that_sample_no_more_end_the_round_on_every_replica_and_what_was_judged_is_kept() -> None:
    exchange, found, written = Exchange(2), dict[int, Exception](), list[tuple[int, int]]()

    class Notes(OpenRollouts):
        def write(self, prompt: Prompt, number: int, judged: Judged) -> None:
            written.append((judged.rollout.group, judged.rollout.index))

    def run(number: int) -> None:
        policy = CutShort([], 4, exchange, number)
        try:
            sample_and_score(policy, REQUEST, Judges(judge()), what="step 1", open_rollouts=Notes())
        except ConnectionError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert {number: str(error) for number, error in found.items()} == dict.fromkeys(
        (0, 1), "no vLLM server can be asked"
    )
    assert len(set(written)) == len(written) == 9 + 2


def test_a_watched_judge_is_asked_besides_and_ends_nothing() -> None:
    for watched, expected in (
        (judge(lambda prompt, rollout: Score(0.5)), Score(0.5)),
        (unreachable(), ScoreFailure("no judge is ready at http://nowhere")),
    ):
        (found,) = rounds({"judge": judge(), "watched": watched})
        assert found.failure is None
        for group in found.groups:
            assert group.watched == [expected] * 3
            assert all(isinstance(score, Score) for score in group.scores)


class Counting(FakeJudge):
    """A judge that has worked before, and counts a request and two tokens for each row."""

    @property
    def counters(self) -> dict[str, float]:
        number = self.scored.total()
        return {"requests": 5 + number, "tokens": 2 * number}


def test_what_the_judges_count_is_added_up_over_replicas_and_begins_with_the_round() -> None:
    def counting() -> Counting:
        return Counting(by_tokens, [], 0.0)

    one, other = rounds({"judge": counting(), "watched": counting()}, {"judge": counting()})
    of_watched = sum(len(group.rollouts) for group in one.groups[::2])
    expected = {"judge/requests": 15, "judge/tokens": 30}
    expected |= {"watched/judge/requests": of_watched, "watched/judge/tokens": 2 * of_watched}
    assert one.counted == other.counted == expected
    (none,) = rounds({"judge": judge()})
    assert none.counted == {}


def test_the_time_in_the_judges_counts_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1000.0)  # a second from each look at it to the next
    monkeypatch.setattr("rs_aligner.trainers.round.time", SimpleNamespace(monotonic=lambda: next(clock)))
    (found,) = rounds({"judge": judge()})
    assert found.waited == 15 + 1  # for each rollout that was handed in, and then for all of them
    nothing = Collected([])
    assert (nothing.waited, nothing.failure, nothing.is_new) == (0.0, None, True)


@pytest.mark.parametrize(("is_first", "disable"), [(False, True), (True, None)])
def test_progress_is_of_all_rollouts_and_shown_by_the_first_rank(
    monkeypatch: pytest.MonkeyPatch, is_first: bool, disable: bool | None
) -> None:
    seen: list[Any] = []

    def bar(rollouts: Any, what: str, total: int, **kwargs: Any) -> Any:
        seen.append((what, total, kwargs["disable"], kwargs["leave"]))
        return rollouts

    monkeypatch.setattr("rs_aligner.trainers.round.tqdm", bar)
    (found,) = rounds({"judge": judge()}, is_first=is_first)
    assert seen == [("step 1", 15, disable, False)]
    assert found.failure is None


def test_a_judge_that_went_away_is_not_asked_again() -> None:
    gone = unreachable()
    (found,) = rounds({"judge": gone})
    assert found.failure == "step 1: no judge is ready at http://nowhere"
    failed = [score for group in found.groups for score in group.scores]
    assert failed == [ScoreFailure("no judge is ready at http://nowhere")] * 15
