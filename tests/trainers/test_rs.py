"""The loop, with fakes for policy and judge: who is kept and trained, what is written, what restarts do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure, TrainingRow
from rs_aligner.stopping import Stopped
from tests.fake_run import FakePolicy, FakeRun, Result, by_tokens, figures

TRAINED_KEYS = {"loss", "grad_norm", "lr"}
VALIDATION_KEYS = {"validation/reward", "validation/reward_error", "validation/response_length/mean"}
STEP_KEYS = {
    *("step", "policy_version", "consumed_prompts", "tokens/generated"),
    *("reward/mean", "reward/std", "reward/kept_mean", "reward/best_of_n"),
    *("rollouts/total", "rollouts/scored", "rollouts/failed", "rollouts/timed_out"),
    *("rollouts/kept", "rollouts/truncated"),
    *("response_length/mean", "rejected/not_in_top_n", "rejected/not_scored", "kl/to_start"),
    *("control/random_mean", "control/random_std", "control/z", "kl/best_of_n"),
    *("reward/kept_minus_mean", "reward/headroom"),
    *(f"best_of/{k}" for k in (1, 2, 3, 4)),
    *(f"pass_at/{k}" for k in (1, 2, 4)),
    *("groups/decidable", "groups/all_passed", "groups/none_passed"),
    *("shift/response_length", "shift/log_prob", "entropy", "duplicates/share"),
    *(f"distinct/{kind}{n}" for kind in ("", "kept_") for n in (1, 2, 3)),
    *("time/weights", "time/generate", "time/score_wait", "time/train", "time/step"),
}


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "run")


@pytest.fixture
def other(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "other")


# Who is kept, and what is trained on


@pytest.mark.parametrize("top_n", [1, 2, 3, 4])
def test_the_kept_are_at_least_as_good_as_all_and_equal_when_all_are_kept(run: FakeRun, top_n: int) -> None:
    run.start(steps=4, top_n_rollouts=top_n)
    for row in run.rows[1:]:
        if top_n == 4:
            assert row["reward/kept_mean"] == pytest.approx(row["reward/mean"], rel=1e-12)
        else:
            assert row["reward/kept_mean"] > row["reward/mean"]
        assert row["reward/best_of_n"] >= row["reward/kept_mean"] - 1e-9


def test_two_prompts_with_the_same_text_are_two_groups(run: FakeRun) -> None:
    run.prompts = [Prompt("same", "same text", (5, 6)) for _ in range(4)]
    (policy,) = run.start(steps=1, top_n_rollouts=1)
    rows = run.ledger.read(1)
    assert [row.group for row in rows] == [g for g in range(4) for _ in range(4)]
    for g in range(4):
        group = [row for row in rows if row.group == g]
        best = max(group, key=lambda row: row.reward or 0.0)
        assert [row.kept for row in group] == [row is best for row in group]
    assert len(policy.trained[0]) == 4


def test_kept_rows_train_in_the_order_of_prompts_and_rollouts(run: FakeRun) -> None:
    (policy,) = run.start(steps=3, top_n_rollouts=2)
    ids = {prompt.id: prompt.token_ids for prompt in run.prompts}
    for step in (1, 2, 3):
        rows = run.ledger.read(step)
        assert [(row.group, row.index) for row in rows] == sorted((row.group, row.index) for row in rows)
        expected = [TrainingRow(ids[row.prompt_id], row.token_ids) for row in rows if row.kept]
        assert policy.trained[step - 1] == expected


def test_a_step_that_keeps_nothing_makes_no_optimizer_step_and_says_so(
    run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "rs_aligner"):
        (policy,) = run.start(steps=1, min_reward=1e9)
    assert policy.weights == "initial"
    assert "nothing kept, no optimizer step" in caplog.text
    row = run.rows[-1]
    assert row["rollouts/kept"] == 0
    assert row["policy_version"] == 1
    assert not {*TRAINED_KEYS, "reward/kept_mean"} & set(row)


def test_a_step_on_fewer_rows_than_a_tenth_of_a_batch_is_told_of_once(
    run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "rs_aligner"):
        run.start(steps=3, batch=41)
    assert caplog.text.count("kept 4 rollouts, fewer than a tenth of model.global_batch_size = 41") == 1
    caplog.clear()
    run.start(steps=6, batch=20)  # steps of 4 and of 2
    assert "fewer than a tenth" not in caplog.text


def test_min_reward_rejects_what_scores_below_it_and_the_ledger_says_why(run: FakeRun) -> None:
    run.start(lambda prompt, rollout: Score(float(rollout.index)), steps=1, top_n_rollouts=3, min_reward=2.0)
    for row in run.ledger.read(1):
        assert row.kept == (row.index >= 2)
        assert row.reason == ("kept" if row.index >= 2 else "below min_reward")


def test_rewards_are_compared_as_the_judge_gave_them(run: FakeRun) -> None:
    """Single precision would make these a tie, which the lower index wins, and 1e39 infinite."""

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        return Score(1e39 if prompt.id == "p0" else 1.0 + 1e-12 * rollout.index)

    run.start(score, steps=2)
    rows = [row for step in (1, 2) for row in run.ledger.read(step)]
    assert {row.index for row in rows if row.kept and row.prompt_id != "p0"} == {3}
    assert {row.index for row in rows if row.kept and row.prompt_id == "p0"} == {0}


def test_a_chain_of_selectors_decides_who_is_kept(run: FakeRun) -> None:
    chain = [{"name": "truncated"}, {"name": "duplicates", "against": "earlier"}, {"name": "median"}]
    (policy,) = run.start(steps=2, selection=chain)
    reasons = {row.reason for step in (1, 2) for row in run.ledger.read(step)}
    assert reasons == {"kept", "truncated", "not above the median"}
    for step in (1, 2):
        rows = run.ledger.read(step)
        assert all((row.finish_reason == "length") == (row.reason == "truncated") for row in rows)
        assert len(policy.trained[step - 1]) == sum(row.kept for row in rows)
        (metrics,) = [row for row in run.rows if row["step"] == step]
        assert metrics["rejected/truncated"] == sum(row.reason == "truncated" for row in rows)
        assert metrics["rejected/duplicate"] == 0


# The judge's failures


def failing(prompt: Prompt, rollout: Rollout) -> Result:
    """Every second rollout fails, the others score below zero: a failure taken for 0.0 would win."""
    return ScoreFailure("timed out") if rollout.index % 2 else Score(-1.0 - rollout.index)


def test_a_failure_is_rejected_and_counted_and_never_a_number(
    run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "rs_aligner"):
        run.start(failing, steps=1, interval=None, top_n_rollouts=3)
    (row,) = [row for row in run.rows if row["step"] == 1]
    assert (row["rollouts/total"], row["rollouts/scored"], row["rollouts/failed"]) == (16, 8, 8)
    assert row["rollouts/kept"] == 8
    assert row["reward/mean"] == row["reward/kept_mean"] == -2.0
    assert row["reward/best_of_n"] == -1.0
    for line in run.ledger.read(1):
        if line.index % 2:
            assert (line.reward, line.failure, line.kept) == (None, "timed out", False)
            assert line.reason == "not scored"
        else:
            assert line.kept
    assert "8 of 16 rollouts have no score and are rejected: 8 x timed out" in caplog.text


def test_a_group_without_any_score_keeps_nothing_and_the_others_train(run: FakeRun) -> None:
    (policy,) = run.start(
        lambda prompt, rollout: ScoreFailure("refused") if prompt.id == "p0" else Score(1.0), steps=2
    )
    rows = [row for step in (1, 2) for row in run.ledger.read(step)]
    assert sum(row.kept for row in rows) == 5
    assert not any(row.kept for row in rows if row.prompt_id == "p0")
    assert sum(map(len, policy.trained)) == 5


def test_validation_leaves_failures_out_of_its_mean(run: FakeRun) -> None:
    run.start(failing, steps=1, num_val_rollouts_per_prompt=2)
    assert [row["validation/reward"] for row in run.rows] == [-1.0, -1.0]


@pytest.mark.parametrize("interval", [None, 1])
def test_a_judge_that_scores_nothing_ends_the_run_with_the_reasons(
    run: FakeRun, interval: int | None
) -> None:
    what = "validation" if interval else "step 1"
    total = 4 if interval else 16
    with pytest.raises(JudgeFailed, match=f"{what}: the judge scored none of {total} rollouts") as error:
        run.start(
            lambda prompt, rollout: ScoreFailure("refused" if rollout.group else "timed out"),
            interval=interval,
        )
    assert f"{total // 4} x timed out, {3 * total // 4} x refused" in str(error.value)
    assert "train" not in run.events


def from_step(step: int, what: Callable[[Prompt, Rollout], Result]) -> Callable[[Prompt, Rollout], Result]:
    """`by_tokens` before this step, `what` from it on (validation excluded)."""

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        is_training = prompt.id.startswith("p")
        return (
            what(prompt, rollout)
            if is_training and rollout.policy_version >= step - 1
            else by_tokens(prompt, rollout)
        )

    return score


def three_of_four_fail(prompt: Prompt, rollout: Rollout) -> Result:
    return ScoreFailure("refused") if rollout.index else by_tokens(prompt, rollout)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_judge_that_fails_too_much_stops_the_run_saved_and_it_goes_on_as_if_nothing_had_been(
    run: FakeRun, other: FakeRun, step: int, replicas: int
) -> None:
    """Checkpoints come every third step: those in between are saved because of the failure alone."""
    settings: dict[str, Any] = {"steps": 4, "interval": 3, "replicas": replicas}
    with pytest.raises(JudgeFailed) as error:
        run.start(from_step(step, three_of_four_fail), **settings)
    total = 6 if step % 2 == 0 else 12  # six prompts are four and two
    assert (
        f"step {step}: {total} of {total * 4 // 3} rollouts have no score, more than "
        f"remote_rm.max_failed_fraction = 0.5 of them: {total} x refused" in str(error.value)
    )
    assert run.events.count("train") == replicas * (step - 1)
    failed = run.ledger.read(step)
    assert [row.failure for row in failed if row.index] == ["refused"] * total
    assert all(not row.kept and row.reason == "the step was not trained" for row in failed)
    if step > 1:
        assert run.checkpoints()[-1] == f"step_{step - 1:06d}"
    again = run.start(**settings)
    through = other.start(**settings)
    assert [policy.weights for policy in again] == [policy.weights for policy in through]
    assert [run.ledger.read(s) for s in run.ledger.steps()] == [other.ledger.read(s) for s in (1, 2, 3, 4)]
    assert figures(run.rows) == figures(other.rows)


@pytest.mark.parametrize(("step", "saves"), [(1, 0), (2, 1), (3, 1), (4, 1)])
def test_a_judge_that_fails_costs_one_save_of_the_step_before_it_where_there_is_none(
    run: FakeRun, step: int, saves: int
) -> None:
    """Every third step is saved anyway; before the first there is nothing to save."""
    with pytest.raises(JudgeFailed, match="; nothing of it was trained"):
        run.start(from_step(step, three_of_four_fail), steps=5, interval=3)
    assert run.events.count("save") == saves
    if not saves:
        assert not (run.folder / "checkpoints").exists()
        return
    newest = run.folder / "checkpoints" / f"step_{step - 1:06d}"
    assert run.checkpoints()[-1] == newest.name
    state = json.loads((newest / "state.json").read_text())
    assert state["version"] == state["counters"]["step"] == step - 1
    place = state["counters"]["sampler"]
    drawn = [4, 6, 10][step - 2]  # six prompts are four and two; those of the failed step are drawn again
    assert 6 * place["epoch"] + place["position"] == drawn


def test_a_continued_run_whose_judge_fails_at_once_saves_nothing_again(run: FakeRun) -> None:
    run.start(steps=2, interval=1)
    saves = run.events.count("save")
    with pytest.raises(JudgeFailed):
        run.start(from_step(3, three_of_four_fail), steps=4, interval=1)
    assert run.events.count("save") == saves
    assert run.checkpoints()[-1] == "step_000002"


def test_a_starting_policy_that_was_saved_is_not_saved_again_when_the_judge_fails(run: FakeRun) -> None:
    with pytest.raises(JudgeFailed):
        run.start(from_step(1, three_of_four_fail), steps=4, interval=1, patience=3)
    assert run.events.count("save") == 1
    assert run.checkpoints() == ["step_000000"]


def test_up_to_max_failed_fraction_the_failed_are_rejected_and_no_more(run: FakeRun) -> None:
    run.start(three_of_four_fail, steps=1, interval=None, remote_rm={"max_failed_fraction": 0.75})
    assert run.rows[-1]["rollouts/failed"] == 12


def test_on_failure_abort_stops_at_one_failure(run: FakeRun) -> None:
    def one_fails(prompt: Prompt, rollout: Rollout) -> Result:
        return ScoreFailure("refused") if (prompt.id, rollout.index) == ("p0", 0) else Score(1.0)

    with pytest.raises(
        JudgeFailed, match=r"1 of \d+ rollouts have no score, and remote_rm.on_failure is abort"
    ):
        run.start(one_fails, steps=2, interval=None, remote_rm={"on_failure": "abort"})


def test_a_validation_that_is_not_scored_stops_the_run_behind_the_step_that_was_trained(run: FakeRun) -> None:
    def no_validation_later(prompt: Prompt, rollout: Rollout) -> Result:
        held_out = prompt.id.startswith("v")
        return ScoreFailure("gone") if held_out and rollout.policy_version else by_tokens(prompt, rollout)

    with pytest.raises(JudgeFailed, match="validation: the judge scored none of 4 rollouts: 4 x gone"):
        run.start(no_validation_later, steps=4, interval=2, save_interval=4)
    assert run.checkpoints() == ["step_000002"]
    assert "validation/reward" not in run.rows[-1]
    (policy,) = run.start(steps=4, interval=2)
    assert [step for step, _, _ in policy.asked if step] == [3, 4]


@pytest.mark.parametrize("replica", [0, 1])
def test_a_rank_that_cannot_reach_the_judge_ends_all_ranks_with_its_error(run: FakeRun, replica: int) -> None:
    with pytest.raises(JudgeFailed, match="step 2: no judge is ready at"):
        run.start(steps=3, interval=None, replicas=2, unreachable=(replica, 2))
    assert len(run.errors) == 2
    assert str(run.errors[0]) == str(run.errors[1])
    assert run.events.count("train") == 2


# Replicas, and when things happen


@pytest.mark.parametrize("replicas", [2, 3])
def test_every_replica_trains_on_the_same_rows_as_one_alone(
    run: FakeRun, other: FakeRun, replicas: int
) -> None:
    """Three replicas get unequal shares of four prompts, and of the two that end an epoch."""
    many = run.start(steps=3, replicas=replicas, top_n_rollouts=2)
    (alone,) = other.start(steps=3, top_n_rollouts=2)
    for policy in many:
        assert policy.trained == alone.trained
        assert policy.weights == alone.weights
    assert figures(run.rows) == figures(other.rows)
    assert [run.ledger.read(s) for s in (1, 2, 3)] == [other.ledger.read(s) for s in (1, 2, 3)]


def test_replicas_agree_on_failures_too(run: FakeRun, other: FakeRun) -> None:
    many = run.start(failing, steps=2, replicas=2, top_n_rollouts=2)
    (alone,) = other.start(failing, steps=2, top_n_rollouts=2)
    assert [policy.trained for policy in many] == [alone.trained, alone.trained]


def test_rollouts_go_to_the_judge_while_others_are_generated_and_scores_are_awaited_after(
    run: FakeRun,
) -> None:
    run.start(steps=1, interval=None, delay=0.05)
    assert run.events[:32] == ["rollout", "submit"] * 16
    assert run.events[32:] == ["generated", "flush", "reference", "train", "save", "export"]
    row = run.rows[-1]
    assert row["time/score_wait"] >= 0.05
    assert row["time/generate"] < row["time/step"] - 0.05 + 1e-6
    assert row["time/step"] == pytest.approx(
        row["time/generate"] + row["time/score_wait"] + row["time/train"], abs=1e-6
    )


def test_the_wait_for_servers_that_take_weights_is_told_and_is_no_sampling(
    run: FakeRun, other: FakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="rs_aligner")
    other.start(steps=1, interval=None)
    assert other.rows[-1]["time/weights"] == 0.0  # no server has the weights
    assert "weights" not in caplog.text
    monkeypatch.setattr(FakePolicy, "weights_seconds", 2.5)
    run.start(steps=1, interval=None)
    row = run.rows[-1]
    assert row["time/weights"] == 2.5
    parts = [row[f"time/{part}"] for part in ("weights", "generate", "score_wait", "train")]
    assert row["time/step"] == pytest.approx(sum(parts), abs=1e-6)
    assert " s (weights 2.5, generate " in caplog.text
    assert run.logger.rows[-1][1]["time/weights"] == 2.5


def test_validation_comes_before_the_first_step_at_intervals_and_after_the_last(run: FakeRun) -> None:
    run.start(steps=5, interval=2)
    rows = run.rows
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "validation/reward" in row] == [0, 2, 4, 5]
    assert set(rows[0]) == {"step", *VALIDATION_KEYS}


def test_validation_draws_the_same_way_each_time_and_is_never_trained_on(run: FakeRun) -> None:
    (policy,) = run.start(steps=4, interval=2, num_val_samples=3, num_val_rollouts_per_prompt=2)
    held_out = [asked for asked in policy.asked if asked[0] == 0]
    assert len(held_out) == 3
    for _, positions, sampling in held_out:
        assert positions == [0, 1, 2]
        assert sampling.use_greedy
    assert all(row.prompt[0] < 200 for rows in policy.trained for row in rows)
    assert {row.prompt_id[0] for step in (1, 2, 3, 4) for row in run.ledger.read(step)} == {"p"}


def test_the_validation_figure_is_the_mean_over_the_held_out_rollouts(run: FakeRun) -> None:
    run.start(
        lambda prompt, rollout: Score(10.0 * int(prompt.id[1:]) + rollout.index),
        steps=1,
        num_val_rollouts_per_prompt=3,
    )
    assert run.rows[0]["validation/reward"] == fmean(10 * i + n for i in range(4) for n in range(3))


@pytest.mark.parametrize("without", ["interval", "prompts"])
def test_without_validation_there_is_no_row_of_step_0(run: FakeRun, without: str) -> None:
    if without == "prompts":
        run.validation = []
    run.start(steps=2, interval=None if without == "interval" else 1)
    assert [row["step"] for row in run.rows] == [1, 2]
    assert not any(VALIDATION_KEYS & set(row) for row in run.rows)
    assert [step for step, _ in run.logger.rows] == [1, 2]


def test_every_prompt_comes_once_an_epoch_with_its_place_in_the_epochs_order(run: FakeRun) -> None:
    (policy,) = run.start(steps=4, interval=None)
    assert [(step, positions) for step, positions, _ in policy.asked] == [
        (1, [0, 1, 2, 3]),
        (2, [4, 5]),
        (3, [0, 1, 2, 3]),
        (4, [4, 5]),
    ]
    for epoch in ((1, 2), (3, 4)):
        drawn = [row.prompt_id for step in epoch for row in run.ledger.read(step) if row.index == 0]
        assert sorted(drawn) == [prompt.id for prompt in run.prompts]
    assert [row["consumed_prompts"] for row in run.rows] == [4, 6, 10, 12]


# What is written


def test_the_keys_of_a_row_are_those_of_the_contract(run: FakeRun) -> None:
    run.start(steps=3, interval=2)
    keys = [set(row) for row in run.rows]
    trained = STEP_KEYS | TRAINED_KEYS
    assert keys == [
        {"step", *VALIDATION_KEYS},
        trained,
        trained | VALIDATION_KEYS,
        trained | VALIDATION_KEYS,
    ]


def test_the_figures_are_those_of_the_ledger_and_of_the_optimizer_steps(run: FakeRun) -> None:
    (policy,) = run.start(steps=3, interval=2, top_n_rollouts=2)
    for step, row in enumerate(run.rows[1:], start=1):
        lines = run.ledger.read(step)
        rewards = [line.reward for line in lines if line.reward is not None]
        assert (row["step"], row["policy_version"]) == (step, step)
        assert {line.policy_version for line in lines} == {step - 1}
        assert row["rollouts/total"] == row["rollouts/scored"] == len(lines) == (8 if step == 2 else 16)
        assert row["rollouts/kept"] == len(policy.trained[step - 1]) == len(lines) // 2
        assert row["rollouts/truncated"] == sum(line.finish_reason == "length" for line in lines)
        assert row["response_length/mean"] == fmean(len(line.token_ids) for line in lines)
        assert row["reward/mean"] == pytest.approx(fmean(rewards))
        assert row["lr"] == pytest.approx(0.1 if step == 2 else 0.5)  # of the last optimizer step
        assert row["grad_norm"] == pytest.approx(row["loss"] / 2)


def test_the_ledger_holds_every_rollout_also_the_rejected(run: FakeRun) -> None:
    run.start(steps=2)
    lines = run.ledger.read(1)
    assert [(line.group, line.index) for line in lines] == [(g, n) for g in range(4) for n in range(4)]
    assert sum(line.kept for line in lines) == 4
    assert {line.reason for line in lines} == {"kept", "not in the top n"}
    assert all(line.token_ids and len(line.log_probs) == len(line.token_ids) for line in lines)


def test_loggers_get_the_figures_of_the_metrics_file(run: FakeRun) -> None:
    run.start(steps=2)
    assert [{"step": step, **row} for step, row in run.logger.rows] == run.rows


# Restarts


def test_a_run_continues_behind_its_checkpoint_as_if_it_had_not_stopped(run: FakeRun, other: FakeRun) -> None:
    run.start(steps=2)
    (policy,) = run.start(steps=5)
    (through,) = other.start(steps=5)
    assert [step for step, _, _ in policy.asked if step] == [3, 4, 5]
    assert policy.weights == through.weights
    again = [row for row in figures(run.rows) if row["step"] != 2]
    assert again == [row for row in figures(other.rows) if row["step"] != 2]
    assert [row["step"] for row in run.rows] == [0, 1, 2, 3, 4, 5]
    assert [run.ledger.read(s) for s in range(1, 6)] == [other.ledger.read(s) for s in range(1, 6)]


@pytest.mark.parametrize("died_in", [1, 2, 3, 4, 5])
def test_a_run_that_died_trains_its_lost_steps_again_with_one_row_each(
    run: FakeRun, other: FakeRun, died_in: int
) -> None:
    steps_left = died_in

    def die() -> None:
        nonlocal steps_left
        steps_left -= 1
        if not steps_left:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run.start(steps=5, interval=2, before_train=die)
    (policy,) = run.start(steps=5, interval=2)
    (through,) = other.start(steps=5, interval=2)
    assert policy.weights == through.weights
    assert figures(run.rows) == figures(other.rows)
    assert run.ledger.steps() == [1, 2, 3, 4, 5]


def test_a_finished_run_started_again_trains_nothing_and_keeps_its_rows(
    run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    (first,) = run.start(steps=3)
    metrics = (run.folder / "metrics.jsonl").read_bytes()
    ledger = [run.ledger.read(s) for s in (1, 2, 3)]
    with caplog.at_level("INFO", "rs_aligner"):
        (again,) = run.start(steps=3)
    assert again.asked == again.trained == []
    assert again.weights == first.weights == (run.folder / "final" / "weights").read_text()
    assert (run.folder / "metrics.jsonl").read_bytes() == metrics
    assert [run.ledger.read(s) for s in (1, 2, 3)] == ledger
    assert "nothing left to do" in caplog.text


@pytest.mark.parametrize(("interval", "save_interval", "saves"), [(2, None, 3), (None, 1, 5), (3, 4, 2)])
def test_checkpoints_come_every_save_interval_and_at_the_end(
    run: FakeRun, interval: int | None, save_interval: int | None, saves: int
) -> None:
    run.start(steps=5, interval=interval, save_interval=save_interval)
    assert run.events.count("save") == saves
    assert run.events[-2:] == ["save", "export"]
    assert run.checkpoints()[-1] == "step_000005"


class Clock:
    """Stands in for the `time` module where the time that is left is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None: ...

    def monotonic(self) -> float:
        return self.now


def test_the_time_limit_saves_and_stops_before_it_is_over(
    run: FakeRun, other: FakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It saves before it looks at held-out prompts, which it does when it goes on."""
    clock = Clock()
    for module in ("rs_aligner.stopping", "rs_aligner.trainers.pace", "tests.fake_run"):
        monkeypatch.setattr(f"{module}.time", clock)

    def ten_seconds() -> None:
        clock.now += 10

    with caplog.at_level("INFO", "rs_aligner"), pytest.raises(Stopped):
        run.start(steps=5, time_limit="00:00:00:34", before_train=ten_seconds)
    assert [row["step"] for row in run.rows] == [0, 1]
    assert run.checkpoints() == ["step_000002"]
    assert run.events[-1] == "save"
    assert not (run.folder / "final").exists()
    assert "exp_manager.max_time_per_run" in caplog.text
    monkeypatch.undo()
    (policy,) = run.start(steps=5)
    (through,) = other.start(steps=5)
    assert policy.weights == through.weights
    assert figures(run.rows) == figures(other.rows)


def test_one_rank_that_is_asked_to_stop_stops_all(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may reach one rank only; the others hear of it in what they exchange anyway."""
    main, asked = threading.current_thread(), threading.Event()

    def poll() -> bool:
        return asked.is_set() and threading.current_thread() is main

    monkeypatch.setattr("rs_aligner.trainers.pace.stopping.poll", poll)
    with pytest.raises(Stopped):
        run.start(steps=5, interval=None, replicas=2, before_train=asked.set)
    assert [type(error) for error in run.errors] == [Stopped, Stopped]
    assert run.checkpoints() == ["step_000001"]
