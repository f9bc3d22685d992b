"""What the page says in words, against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rs_aligner.report.facts import Facts
from rs_aligner.report.story import verdict
from rs_aligner.report.sums import HeldOutPrompt, Look, Sums
from rs_aligner.report.worth import costs, duration, selection_against_chance


def look(step: int, *means: float | None) -> Look:
    return Look(step, [HeldOutPrompt(f"v{place}", mean, None) for place, mean in enumerate(means)])


def held_out(step: int, reward: float, error: float | None = 0.03, **more: float) -> dict[str, float]:
    row = {"step": step, "validation/reward": reward, **more}
    return row if error is None else {**row, "validation/reward_error": error}


def test_a_rise_by_more_than_two_errors_of_the_difference_is_a_yes() -> None:
    # sqrt(0.03^2 + 0.04^2) = 0.05, and 0.12 is 2.4 of it
    found = verdict(Facts([held_out(0, 0.30), held_out(4, 0.42, 0.04)]), "train_rs")
    assert (found.answer, found.headline) == ("yes", "Yes: the held-out score rose by 0.12.")
    assert found.sentences[0].startswith(
        "The mean score of held-out answers was 0.300 ± 0.030 before the first step and is 0.420 ± 0.040 "
        "after step 4;"
    )
    assert found.sentences[1].startswith("The difference is 0.120 ± 0.050 (as of two independent samples);")


@pytest.mark.parametrize(
    ("after", "answer", "headline"),
    [
        (
            0.4,
            "unclear",
            "Not shown: the held-out score changed by no more than chance explains.",
        ),  # 2.0 errors
        (0.31, "unclear", "Not shown: the held-out score changed by no more than chance explains."),
        (0.19, "no", "No: the held-out score fell by 0.11."),
    ],
)
def test_what_chance_explains_is_not_called_a_change(after: float, answer: str, headline: str) -> None:
    found = verdict(Facts([held_out(0, 0.3), held_out(4, after, 0.04)]), "train_rs")
    assert (found.answer, found.headline) == (answer, headline)


def test_the_same_prompts_at_both_looks_give_the_error_of_their_own_differences() -> None:
    # Differences 0.1, 0.2, 0.3, 0.2: mean 0.2, deviation sqrt(0.02 / 3) = 0.0816, error 0.0408.
    sums = Sums(first=look(0, 0.0, 0.4, 0.2, 0.6), last=look(4, 0.1, 0.6, 0.5, 0.8))
    rows = [held_out(0, 0.3, 0.13), held_out(4, 0.5, 0.14)]
    found = verdict(Facts(rows, sums), "train_rs")
    assert found.answer == "yes"  # as of independent samples, an error of 0.19 would say nothing
    assert found.sentences[1].startswith(
        "The difference is 0.200 ± 0.041 (from the differences of each prompt);"
    )


@pytest.mark.parametrize(
    "last", [look(4, 0.1, 0.6, 0.5), look(3, 0.1, 0.6, 0.5, 0.8), look(4, None, 0.6, None, None)]
)
def test_looks_that_do_not_fit_together_are_not_paired(last: Look) -> None:
    sums = Sums(first=look(0, 0.0, 0.4, 0.2, 0.6), last=last)
    found = verdict(Facts([held_out(0, 0.3), held_out(4, 0.5, 0.04)], sums), "train_rs")
    assert "as of two independent samples" in found.sentences[1]


def test_too_little_to_tell_is_said_so() -> None:
    none = verdict(Facts([{"step": 1, "reward/mean": 0.5}]), "train_rs")
    assert (none.answer, none.headline) == ("unknown", "Nobody can tell: no held-out answers were scored.")
    one = verdict(Facts([held_out(0, 0.3)]), "train_rs")
    assert (one.answer, one.headline) == ("unknown", "It is too early to tell: there is one validation only.")
    assert one.sentences == ("The held-out score before the first step is 0.300 ± 0.030.",)
    of_one_prompt = verdict(Facts([held_out(0, 0.3, None), held_out(4, 0.9, None)]), "train_rs")
    assert of_one_prompt.answer == "unclear"
    assert of_one_prompt.headline == "Nobody can tell: of one held-out prompt there is no error."


def test_a_better_step_than_the_last_and_the_watched_judge_are_told() -> None:
    watched = {"validation/watched_error": 0.01}
    rows = [
        held_out(0, 0.3, **watched, **{"validation/watched": 0.5}),
        held_out(2, 0.7, **watched, **{"validation/watched": 0.6}),
        held_out(4, 0.6, **watched, **{"validation/watched": 0.4}),
    ]
    said = " ".join(verdict(Facts(rows), "train_rs").sentences)
    assert "The highest of the 3 validations was 0.7 after step 2;" in said
    assert "its held-out score fell, from 0.500 ± 0.010 to 0.400 ± 0.010." in said


def step(
    number: int, kept: int, mean: float, at_random: float, deviation: float, **more: Any
) -> dict[str, Any]:
    return {
        "step": number,
        "rollouts/kept": kept,
        "reward/kept_mean": mean,
        "control/random_mean": at_random,
        "control/random_std": deviation,
        **({"control/z": (mean - at_random) / deviation} if deviation else {}),
        **more,
    }


def test_selection_is_weighed_by_what_each_step_kept() -> None:
    # (2 * 0.5 + 6 * 0.3) / 8 = 0.35; sqrt((2 * 0.3)^2 + (6 * 0.15)^2) / 8 = 0.1352; 0.35 / 0.1352 = 2.59
    rows = [step(1, 2, 1.0, 0.5, 0.3), step(2, 6, 0.9, 0.6, 0.15, **{"reward/headroom": 0.1})]
    said = selection_against_chance(Facts(rows))
    assert said[0] == (
        "Over 2 steps the kept answers score 0.35 higher than as many answers to the same prompts, drawn "
        "at random (2.59 standard deviations of such a draw)."
    )
    assert "whether the policy learns from it" in said[1]
    assert said[2] == "The best answer of each prompt is another 0.1 above the kept ones now."


def test_selection_that_does_no_better_than_chance_is_told() -> None:
    weak = selection_against_chance(Facts([step(1, 4, 0.55, 0.5, 0.05)]))
    assert weak[0].startswith("Over the one step the kept answers score 0.05 higher than")
    assert weak[1].startswith("That is no more than chance:")
    no_choice = selection_against_chance(Facts([step(1, 4, 0.5, 0.5, 0.0)]))
    assert "the kept answers score no higher than as many" in no_choice[0]
    assert no_choice[1].startswith("There was no choice:")
    assert "nothing to compare" in selection_against_chance(Facts([{"step": 1}]))[0]


def test_what_the_judge_cost_is_told_where_it_is_known() -> None:
    counted = {"judge/requests": 8, "judge/prompt_tokens": 900, "judge/completion_tokens": 8}
    looks = {f"validation/{key}": number for key, number in counted.items()}
    found = {one.name: one for one in costs(Facts([{"step": 0, **looks}, {"step": 1, **counted, **looks}]))}
    assert found["tokens of the judge"].value == "2,700 read, 24 written"
    assert found["tokens of the judge"].note == "in 24 requests, held-out answers included"


def test_costs_are_sums_over_steps() -> None:
    times = {"time/generate": 60.0, "time/score_wait": 15.0, "time/train": 25.0, "time/step": 100.0}
    times["time/weights"] = 0.0
    rows = [{"step": 0}, *({"step": number, "tokens/generated": 1500, **times} for number in (1, 2))]
    sums = Sums(rollouts=64, held_out=20, watched=84)
    found = {one.name: one.value for one in costs(Facts(rows, sums))}
    assert found == {
        "answers sampled": "64",
        "tokens sampled": "3,000",
        "answers judged": "84",
        "answers judged by the watched judge": "84",
        "time of all steps": "3 min 20 s",
        "of it sampling": "2 min 0 s",
        "of it waiting for the judge": "30.0 s",
        "of it training": "50.0 s",
    }
    taken = [{**row, "time/weights": 5.0} for row in rows[1:]]
    found = {one.name: one.value for one in costs(Facts(taken, sums))}
    assert found["of it handing weights to servers"] == "10.0 s"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.25, "0.2 s"), (59.4, "59.4 s"), (59.7, "1 min 0 s"), (3599.6, "1 h 0 min"), (90061, "1 d 1 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_reward_model_is_told_by_its_accuracy() -> None:
    rows = [{"step": 0, "validation/accuracy": 0.5}, {"step": 9, "validation/accuracy": 0.75}]
    assert (
        verdict(Facts(rows), "train_reward_model").headline == "The held-out accuracy rose: 50.0% to 75.0%."
    )
    assert verdict(Facts(rows[:1]), "train_reward_model").answer == "unknown"
    assert verdict(Facts([]), "train_reward_model").answer == "unknown"
