"""What is measured of a step, and the one file it is kept in over restarts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rs_aligner.record.metrics import MetricsFile, read_rows, step_metrics
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Progress, build_chain

FAILED = ScoreFailure("the judge took more than 5 s over this row (judge.time_limit)")


def measure(rewards: list[list[float | None]], num_select: int = 1, **kwargs: float) -> dict[str, float]:
    """Metrics of a step with these rewards (None: the judge failed); rollout n has n + 1 tokens."""
    groups = [
        Group(
            Prompt(str(g), "text", (1,)),
            [
                Rollout(g, n, (7,) * (n + 1), "", "length" if n == 0 else "stop")
                for n, _ in enumerate(rewards_N)
            ],
            [FAILED if reward is None else Score(reward) for reward in rewards_N],
        )
        for g, rewards_N in enumerate(rewards)
    ]
    chain = build_chain((), top_n=num_select, min_reward=kwargs.get("min_reward"))
    return step_metrics(groups, chain.select(groups, Progress(1, 1)))


def test_the_figures_of_a_step():
    assert measure([[1.0, 3.0, None], [5.0, 3.0, 3.0]]) == {
        "rollouts/total": 6,
        "rollouts/scored": 5,
        "rollouts/failed": 1,
        "rollouts/timed_out": 1,
        "rollouts/kept": 2,
        "rollouts/truncated": 2,
        "rejected/not_scored": 1,
        "rejected/not_in_top_n": 3,
        "response_length/mean": 2.0,
        "reward/mean": 3.0,
        "reward/std": pytest.approx(math.sqrt(8 / 5)),
        "reward/best_of_n": 4.0,
        "reward/kept_mean": 4.0,
    }


def test_groups_of_different_sizes_are_measured_as_they_are():
    metrics = measure([[1.0, 3.0, 2.0], [5.0], []], num_select=2)
    assert (metrics["rollouts/total"], metrics["rollouts/kept"], metrics["reward/best_of_n"]) == (4, 3, 4.0)
    assert metrics["reward/kept_mean"] == pytest.approx(10 / 3)


def test_a_failure_is_not_a_zero():
    metrics = measure([[None, None], [2.0, None]])
    assert (metrics["reward/mean"], metrics["reward/std"], metrics["reward/best_of_n"]) == (2.0, 0.0, 2.0)


def test_what_is_undefined_is_absent():
    all_failed = measure([[None, None]])
    assert not any(key.startswith("reward/") for key in all_failed)
    assert all_failed["rollouts/failed"] == 2
    none_kept = measure([[0.0, 0.0]], min_reward=1.0)
    assert none_kept["rollouts/kept"] == 0
    assert "reward/kept_mean" not in none_kept
    no_groups = measure([])
    assert "response_length/mean" not in no_groups
    assert no_groups["rollouts/total"] == 0


def test_keeping_all_makes_the_kept_mean_the_mean():
    rewards = [[0.1, 0.2, 0.7], [0.3, -0.3, 0.05]]
    everything, best = measure(rewards, num_select=3), measure(rewards, num_select=1)
    assert everything["reward/kept_mean"] == everything["reward/mean"]
    assert best["reward/kept_mean"] == best["reward/best_of_n"] > best["reward/mean"]


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_file_started_twice_has_one_row_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for step in range(5):
            file.append({"step": step, "loss": 1.0})
    with MetricsFile(path, last_step=2) as file:  # the last checkpoint was that of step 2
        for step in (3, 4, 5):
            file.append({"step": step, "loss": 2.0})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows] == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


def test_a_run_that_starts_anew_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        with MetricsFile(path) as file:
            file.append({"step": 0, "validation/reward": 0.5})
    assert steps_in(path) == [0]


@pytest.mark.parametrize("whole", [0, 3, 300])
def test_a_last_row_that_was_cut_short_is_left_out_however_many_there_are(tmp_path, whole):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(whole)) + '{"ste')
    assert [row["step"] for row in read_rows(path)] == list(range(whole))
    path.write_text('{"ste\n' + path.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not a row of metrics"):
        read_rows(path)


def test_a_run_that_goes_on_keeps_the_row_of_its_last_step_and_follows_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        for step in range(6):
            file.append({"step": step})
    with MetricsFile(path, last_step=3) as file:
        assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="above the last, 3, not 3"):
            file.append({"step": 3})
        file.append({"step": 4})
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("steps", "last_step", "again_until", "kept"),
    [
        ((0, 1, 2, 3, 4), 1, 3, [0, 1, 2, 3]),  # 4 has no step in the ledger
        ((1, 2, 3), -1, 3, [1, 2, 3]),  # no checkpoint and no validation before the first step
        ((0, 1, 3, 4), 1, 4, [0, 1]),  # the row of step 2 is not there
        ((1, 2, 1), -1, 2, [1, 2]),  # a step that stands twice
    ],
)
def test_rows_of_steps_that_are_trained_again_stay_as_far_as_there_is_no_gap(
    tmp_path, steps, last_step, again_until, kept
):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in steps))
    MetricsFile(path, last_step, again_until=again_until).close()
    assert steps_in(path) == kept


def test_the_first_row_may_be_of_step_0_and_none_may_be_below(tmp_path):
    for last_step in (-1, 3):
        with MetricsFile(tmp_path / f"{last_step}.jsonl", last_step=last_step) as file:
            with pytest.raises(ValueError, match="above the last, -1, not -1"):
                file.append({"step": -1})
            file.append({"step": 0})


def test_each_row_is_there_when_append_returns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append({"step": 1})
        assert steps_in(path) == [1]


def test_a_row_cut_short_at_any_byte_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole, cut = b'{"step": 1, "loss": 0.5}\n', b'{"step": 2, "loss": 0.25}'
    for length in range(len(cut) + 1):
        path.write_bytes(whole + cut[:length])
        path.with_suffix(".sums").unlink(missing_ok=True)
        with MetricsFile(path, last_step=2) as file:
            file.append({"step": 3})
        assert steps_in(path) == ([1, 2, 3] if length == len(cut) else [1, 3])


@pytest.mark.parametrize("broken", ['{"step": 1', "[]", '{"loss": 1}', "", '{"step": "1"}'])
def test_a_broken_row_in_the_middle_is_named_and_left_alone(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"step": 0}}\n{broken}\n{{"step": 2}}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a row"):
        MetricsFile(path, last_step=2)
    assert path.read_text() == text


def test_undefined_values_are_left_out_of_the_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": None, "reward/mean": 0.0})
    assert json.loads(path.read_text()) == {"step": 1, "reward/mean": 0.0}


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"step": 3}, {"step": 2}])
def test_refuses_a_row_without_a_new_step(tmp_path, row):
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        file.append({"step": 3})
        with pytest.raises(ValueError, match="above the last, 3"):
            file.append(row)
