"""What there is to worry about: each threshold from both sides, and what is said where nothing is known."""

from __future__ import annotations

from typing import Any

import pytest

from rs_aligner.report.checks import CHECKS, checked
from rs_aligner.report.facts import Facts

Row = dict[str, Any]


def steps(key: str, *values: float, **more: float) -> list[Row]:
    return [{"step": number, key: value, **more} for number, value in enumerate(values, start=1)]


def found(key: str, rows: list[Row]) -> tuple[str, str, str]:
    one = next(told.found for told in checked(Facts(rows)) if told.check.key == key)
    return one.state, one.value, one.more


def truncated(cut: int) -> list[Row]:
    return steps("rollouts/truncated", cut, **{"rollouts/total": 100})


def failed(number: int) -> list[Row]:
    return steps("rollouts/failed", number, 0, **{"rollouts/total": 500})


@pytest.mark.parametrize(
    ("key", "rows", "state", "value"),
    [
        ("kl/to_start", steps("kl/to_start", 9, 9, 9, 0.1, 0.1, 0.1), "good", "0.1 nats a token"),
        ("kl/to_start", steps("kl/to_start", 0, 0, 0.1, 0.2), "amber", "0.15 nats a token"),
        ("kl/to_start", steps("kl/to_start", 0.51), "red", "0.51 nats a token"),
        ("response_length/mean", steps("response_length/mean", 100, 125), "good", "100 to 125 tokens (+25%)"),
        (
            "response_length/mean",
            steps("response_length/mean", 100, 100, 100, 126, 126, 126),
            "amber",
            "100 to 126 tokens (+26%)",
        ),
        (
            "response_length/mean",
            steps("response_length/mean", 100, 100, 100, 60, 60, 60),
            "red",
            "100 to 60 tokens (-40%)",
        ),
        ("rollouts/truncated", truncated(10), "good", "10% of the answers of the last step"),
        ("rollouts/truncated", truncated(11), "amber", "11% of the answers of the last step"),
        ("rollouts/truncated", truncated(51), "red", "51% of the answers of the last step"),
        ("duplicates/share", steps("duplicates/share", 0.2), "good", "20% (at the start 20%)"),
        (
            "duplicates/share",
            steps("duplicates/share", *[0.1] * 3, *[0.3] * 3),
            "amber",
            "30% (at the start 10%)",
        ),
        ("duplicates/share", steps("duplicates/share", 0.6), "red", "60% (at the start 60%)"),
        ("entropy", steps("entropy", *[2.0] * 3, *[1.1] * 3), "good", "2 to 1.1 nats a token (-45%)"),
        ("entropy", steps("entropy", *[2.0] * 3, *[0.9] * 3), "amber", "2 to 0.9 nats a token (-55%)"),
        ("entropy", steps("entropy", *[2.0] * 3, *[0.2] * 3), "red", "2 to 0.2 nats a token (-90%)"),
        ("rollouts/failed", failed(10), "good", "10 of 1,000 (1.0%)"),
        ("rollouts/failed", failed(11), "amber", "11 of 1,000 (1.1%)"),
        ("rollouts/failed", failed(101), "red", "101 of 1,000 (10.1%)"),
        ("groups/decidable", steps("groups/decidable", 0.4), "good", "40% of the prompts"),
        ("groups/decidable", steps("groups/decidable", 0.2), "amber", "20% of the prompts"),
        ("groups/decidable", steps("groups/decidable", 0.01), "red", "1% of the prompts"),
        ("rollouts/kept", steps("rollouts/kept", 1, 2), "good", "0 of 2 steps"),
        ("rollouts/kept", steps("rollouts/kept", 0, 2), "amber", "1 of 2 steps"),
        ("rollouts/kept", steps("rollouts/kept", 0, 0, 1), "red", "2 of 3 steps"),
        ("optimizer_steps/skipped", steps("loss", 1.0), "good", "0, in 0% of the steps"),
        (
            "optimizer_steps/skipped",
            [*steps("loss", *[1.0] * 19), {"step": 20, "optimizer_steps/skipped": 2}],
            "amber",
            "2, in 5% of the steps",
        ),
        ("optimizer_steps/skipped", steps("optimizer_steps/skipped", 1), "red", "1, in 100% of the steps"),
    ],
)
def test_a_threshold_is_where_the_page_says_it_is(key: str, rows: list[Row], state: str, value: str) -> None:
    assert found(key, rows)[:2] == (state, value)


def looks(*pairs: tuple[float, float]) -> list[Row]:
    return [
        {
            "step": 2 * place,
            "validation/reward": reward,
            "validation/reward_error": 0.01,
            "validation/watched": watched,
            "validation/watched_error": 0.01,
        }
        for place, (reward, watched) in enumerate(pairs)
    ]


def test_judges_part_where_the_run_itself_warns() -> None:
    # Errors of a difference are 0.014: 0.02 is 1.4 of them, 0.035 is 2.5, 0.1 is 7.
    key = "validation/watched"
    assert found(key, looks((0.1, 0.5), (0.2, 0.48)))[0] == "good"
    assert found(key, looks((0.1, 0.5), (0.1, 0.465)))[0] == "amber"  # the judge's own score has not risen
    state, value, more = found(key, looks((0.1, 0.4), (0.2, 0.5), (0.3, 0.4)))
    assert (state, value) == ("red", "watched score 0.5 at step 2, 0.4 now")
    assert more == "They have parted since step 2."
    assert found(key, looks((0.1, 0.5)))[:2] == ("unknown", "not known")


def test_a_tail_that_one_judge_sees_is_red_where_the_run_itself_warns() -> None:
    def tails(*places: float) -> list[Row]:
        figures = {"tail/watched_error": 0.05, "tail/watched_gap": 1.0}
        return [{"step": step, "tail/watched": place, **figures} for step, place in enumerate(places, 1)]

    assert found("tail/watched", tails(0.9, 0.6))[:2] == ("good", "0.9, then 0.6 (watched)")
    assert found("tail/watched", tails(0.8, 0.9, 0.1))[:2] == ("red", "0.9, then 0.1 (watched)")


def test_without_figures_each_check_says_why_it_knows_nothing() -> None:
    for told in checked(Facts([])):
        assert (told.found.value, told.found.state) == ("not known", "unknown")
        assert told.found.more.endswith(".")


def test_the_worst_comes_first() -> None:
    rows = [*truncated(90)]
    rows[0] |= {"duplicates/share": 0.3, "kl/to_start": 0.0}
    states = [told.found.state for told in checked(Facts(rows))]
    assert states[:3] == ["red", "amber", "good"]
    assert states == sorted(states, key=["red", "amber", "good", "unknown"].index)
    assert len(states) == len(CHECKS)
