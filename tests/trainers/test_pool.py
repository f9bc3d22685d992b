"""From which rollouts a step chooses: pools, banks, budgets, files; and when a run stops by itself."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rs_aligner.config import TrainRSConfig, UntilConfig
from rs_aligner.record.ledger_row import LedgerRow, groups_of
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.collect import Collector
from rs_aligner.trainers.round import Collected, Judges
from tests.fake_run import Exchange, FakeJudge, FakePolicy, FakeRun, Result, by_tokens, digest, figures

RFT = {"pool": {"improve_steps": 3}, "top_n_rollouts": 2}


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "run")


@pytest.fixture
def other(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "other")


def sampled_steps(policy: FakePolicy) -> list[int]:
    return [step for step, _, _ in policy.asked if step > 0]


def key(row: LedgerRow) -> tuple[int, int, int]:
    return (row.policy_version, row.prompt_row, row.index)


# Grow and improve


def test_a_cycle_samples_once_and_trains_so_often(run: FakeRun) -> None:
    (policy,) = run.start(steps=7, **RFT)
    assert sampled_steps(policy) == [1, 4, 7]
    rows = {row["step"]: row for row in run.rows}
    for step in (2, 3):
        assert rows[step]["rollouts/total"] == rows[1]["rollouts/total"]
        assert rows[step]["reward/mean"] == rows[1]["reward/mean"]
        assert rows[step]["tokens/generated"] == 0
        assert rows[step]["consumed_prompts"] == rows[1]["consumed_prompts"]
    assert rows[4]["tokens/generated"] > 0
    assert policy.trained[0] == policy.trained[1] == policy.trained[2] != policy.trained[3]


@pytest.mark.parametrize(("improve_steps", "sampled"), [(1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [1, 5])])
def test_a_cycle_of_any_length_trains_on_what_its_first_step_sampled(
    run: FakeRun, other: FakeRun, improve_steps: int, sampled: list[int]
) -> None:
    """Two is the shortest cycle, and another case than three: it has no step in its middle."""
    how: dict[str, Any] = {"save_interval": 1, "epochs": 9, "pool": {"improve_steps": improve_steps}}
    (policy,) = run.start(steps=5, **how)
    assert sampled_steps(policy) == sampled
    rows = {row["step"]: row for row in run.rows}
    for step in range(1, 6):
        first = max(one for one in sampled if one <= step)
        assert rows[step]["rollouts/total"] == rows[first]["rollouts/total"] > 0
        assert rows[step]["reward/mean"] == rows[first]["reward/mean"]
        assert (rows[step]["tokens/generated"] > 0) == (step == first)
        assert policy.trained[step - 1] == policy.trained[first - 1]
    for stopped in range(1, 5):
        other.start(steps=stopped, **how)
    (continued,) = other.start(steps=5, **how)
    assert continued.weights == policy.weights
    assert figures(other.rows)[-1] == figures(run.rows)[-1]


def test_an_epoch_has_a_cycle_for_each_draw_of_prompts(run: FakeRun) -> None:
    (policy,) = run.start(steps=-1, epochs=2, **RFT)  # 6 prompts, 4 a draw: 2 draws an epoch
    assert max(row["step"] for row in run.rows) == 12
    assert sampled_steps(policy) == [1, 4, 7, 10]


def test_a_pool_is_written_once_and_then_only_what_is_trained_on_again(run: FakeRun) -> None:
    run.start(steps=3, **RFT)
    first, second = run.ledger.read(1), run.ledger.read(2)
    assert len(first) == 16
    assert {key(row) for row in second} == {key(row) for row in first if row.kept}
    assert all(row.kept for row in second)


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_a_run_goes_on_in_the_middle_of_a_cycle_as_if_it_had_not_stopped(
    run: FakeRun, other: FakeRun, killed_after: int
) -> None:
    (whole,) = run.start(steps=7, save_interval=1, **RFT)
    other.start(steps=killed_after, save_interval=1, **RFT)
    (continued,) = other.start(steps=7, save_interval=1, **RFT)
    assert continued.weights == whole.weights
    assert figures(other.rows)[-1] == figures(run.rows)[-1]


def test_replicas_restore_the_pool_from_the_one_that_writes(run: FakeRun, other: FakeRun) -> None:
    (whole,) = run.start(steps=5, save_interval=1, **RFT)
    other.start(steps=2, save_interval=1, replicas=2, **RFT)
    continued = other.start(steps=5, save_interval=1, replicas=2, **RFT)
    assert {policy.weights for policy in continued} == {whole.weights}


def test_a_lost_ledger_is_named_where_a_cycle_cannot_go_on(run: FakeRun) -> None:
    run.start(steps=2, save_interval=1, **RFT)
    (run.folder / "rollouts" / "step_000001.jsonl").unlink()
    with pytest.raises(ValueError, match="has no step 1"):
        run.start(steps=4, save_interval=1, **RFT)


# The bank


def test_what_was_kept_stays_a_candidate_as_long_as_it_is_not_stale(run: FakeRun) -> None:
    run.start(steps=6, epochs=9, pool={"max_staleness": 2}, top_n_rollouts=1)
    for step in range(1, 7):
        rows = run.ledger.read(step)
        ages = {step - 1 - row.policy_version for row in rows}
        assert ages <= {0, 1, 2}
        assert (max(ages) > 0) == (step > 1)
        kept = [row for row in rows if row.kept]
        assert len({row.prompt_row for row in kept}) == len(kept)  # one of each prompt


def test_a_banked_rollout_competes_with_the_new_ones_of_its_prompt(run: FakeRun) -> None:
    run.prompts = run.prompts[:4]  # each step has all prompts

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        return Score(100.0 if rollout.policy_version == 0 and rollout.index == 1 else float(rollout.index))

    run.start(score, steps=3, epochs=9, pool={"max_staleness": 1}, top_n_rollouts=1)
    kept = {step: {key(row)[0::2] for row in run.ledger.read(step) if row.kept} for step in (1, 2, 3)}
    assert kept == {1: {(0, 1)}, 2: {(0, 1)}, 3: {(2, 3)}}


def test_a_bank_survives_a_restart(run: FakeRun, other: FakeRun) -> None:
    how: dict[str, Any] = {"pool": {"max_staleness": 3}, "save_interval": 1, "epochs": 9}
    (whole,) = run.start(steps=6, **how)
    other.start(steps=3, **how)
    (continued,) = other.start(steps=6, **how)
    assert continued.weights == whole.weights


def watched_tokens(prompt: Prompt, rollout: Rollout) -> Result:
    """A second judge that can be told from the rollout alone; it fails on some."""
    return Score(float(sum(rollout.token_ids))) if sum(rollout.token_ids) % 5 else ScoreFailure("no idea")


@pytest.mark.parametrize("pool", [{"max_staleness": 3}, {"improve_steps": 3}])
def test_what_a_watched_judge_said_stays_with_its_rollout(
    run: FakeRun, other: FakeRun, pool: dict[str, int]
) -> None:
    """In a bank, in a cycle, and where a run goes on and finds both in its ledger."""
    how: dict[str, Any] = {"pool": pool, "save_interval": 1, "epochs": 9, "watched": watched_tokens}
    run.start(steps=5, **how)
    other.start(steps=2, **how)
    other.start(steps=5, **how)
    for made in (run, other):
        rows = [row for step in range(1, 6) for row in made.ledger.read(step)]
        assert any(row.policy_version < row.step - 1 for row in rows)
        for row in rows:
            said = watched_tokens(row.as_prompt, row.as_rollout)
            assert row.watched == (said.reward if isinstance(said, Score) else None)
    assert figures(other.rows) == figures(run.rows)
    for row in run.rows[1:]:
        assert {"watched/mean", "watched/kept_mean", "watched/failed"} <= set(row)


def test_until_goes_on_in_the_middle_of_a_cycle_with_the_same_figures(run: FakeRun, other: FakeRun) -> None:
    score = solved({f"p{i}": i / 8 for i in range(6)} | {f"v{i}": 0.5 for i in range(4)})
    until = {"accepted": 2, "at_least": 1, "max_rollouts": 20}
    how: dict[str, Any] = {"until": until, "pool": {"improve_steps": 2}, "save_interval": 1}
    run.start(score, steps=4, **how)
    for steps in (1, 3, 4):
        other.start(score, steps=steps, **how)
    assert figures(other.rows)[-1] == figures(run.rows)[-1]
    assert {row.by_design for row in run.ledger.read(1)} == {True, False}


# From the starting weights, and several passes


def test_each_cycle_trains_the_starting_weights_anew_on_what_the_policy_sampled(run: FakeRun) -> None:
    (policy,) = run.start(steps=2, interval=None, pool={"restart": True})
    events = [event for event in run.events if event in ("restart", "train", "generated")]
    assert events == ["generated", "restart", "train"] * 2
    rows = policy.trained[1]
    fresh = FakePolicy([], 4, Exchange(1), 0)
    fresh.train(rows)
    assert policy.weights == fresh.weights


def test_passes_train_on_the_kept_again(run: FakeRun) -> None:
    (policy,) = run.start(steps=1, pool={"passes": 3})
    assert len(policy.trained) == 3
    assert policy.trained[0] == policy.trained[2]


# Sampling until enough are accepted


def solved(rate: dict[str, float]) -> Any:
    """Rewards of 0 and 1, with a pass rate for each prompt."""

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        drawn = int(digest(prompt.id, rollout.seed)[:8], 16) / 16**8
        return Score(float(drawn < rate[prompt.id]))

    return score


@pytest.fixture
def recorded_rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each round the first index and how many rollouts a prompt gets."""
    found: list[tuple[int, int]] = []
    generate = FakePolicy.generate

    def recorded(self: FakePolicy, request: SampleRequest) -> Any:
        found.append((request.first_index, request.num_rollouts))
        return generate(self, request)

    monkeypatch.setattr(FakePolicy, "generate", recorded)
    return found


def collect_until(score: Any, budget: int = 4, **until: Any) -> list[Group]:
    found = collected_until(score, budget, **until)
    assert found.failure is None
    return found.groups


def collected_until(score: Any, budget: int = 4, **until: Any) -> Collected:
    config = TrainRSConfig.model_validate(
        {
            "exp_manager": {"explicit_log_dir": "unused"},
            "pretrained_checkpoint": {"restore_from_path": "unused"},
            "model": {"data": {"data_prefix": {"train": "unused"}}},
        }
    )
    prompts = [Prompt(f"p{i}", f"text {i}", (100 + i,), position=i) for i in range(4)]
    events: list[str] = []
    policy = FakePolicy(events, 4, Exchange(1), 0)
    collector = Collector(config, policy, Judges(FakeJudge(score, events, 0.0)))
    wanted = UntilConfig.model_validate({"accepted": 1, "at_least": 1, **until})
    return collector.collect_until(
        prompts, wanted, budget, config.model.rs.sampling_params, step=1, what="step 1"
    )


def test_easy_prompts_leave_their_budget_to_hard_ones() -> None:
    groups = collect_until(solved({"p0": 1.0, "p1": 1.0, "p2": 1.0, "p3": 0.0}), rollouts_a_round=1)
    assert [len(group.rollouts) for group in groups] == [1, 1, 1, 13]  # 16 in all
    assert [rollout.index for rollout in groups[3].rollouts] == list(range(13))
    assert len({rollout.seed for rollout in groups[3].rollouts}) == 13
    assert all(rollout.group == 3 for rollout in groups[3].rollouts)


def test_a_prompt_has_at_most_so_many_rollouts_and_tokens() -> None:
    nobody = solved({f"p{i}": 0.0 for i in range(4)})
    groups = collect_until(nobody, max_rollouts=3)
    assert [len(group.rollouts) for group in groups] == [3, 3, 3, 3]
    groups = collect_until(nobody, max_tokens=1, rollouts_a_round=2)
    assert [len(group.rollouts) for group in groups] == [2, 2, 2, 2]  # a round is not cut
    groups = collect_until(nobody, tokens_per_prompt=1, rollouts_a_round=2)
    assert [len(group.rollouts) for group in groups] == [2, 2, 2, 2]
    assert sum(len(group.rollouts) for group in collect_until(nobody)) == 16


def test_the_waiting_of_all_rounds_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1000.0)
    monkeypatch.setattr("rs_aligner.trainers.round.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(FakePolicy, "weights_seconds", 0.25)
    found = collected_until(solved({f"p{i}": 0.0 for i in range(4)}), rollouts_a_round=2)
    assert found.waited == 16 + 2  # of each rollout, and of each of the two rounds
    assert found.weights_seconds == 2 * 0.25


def test_nothing_is_sampled_behind_a_round_whose_judge_failed_too_much(
    recorded_rounds: list[tuple[int, int]],
) -> None:
    found = collected_until(lambda *_: ScoreFailure("timed out"), rollouts_a_round=1)
    assert found.failure == "step 1: the judge scored none of 4 rollouts: 4 x timed out"
    assert recorded_rounds == [(0, 1)]


def test_what_is_left_of_the_budget_goes_to_as_many_as_it_suffices_for() -> None:
    rate = {"p0": 1.0, "p1": 0.0, "p2": 0.0, "p3": 0.0}
    groups = collect_until(solved(rate), rollouts_a_round=3)
    assert [len(group.rollouts) for group in groups] == [3, 5, 4, 4]


def test_a_prompt_is_asked_until_it_has_as_many_accepted_as_wanted() -> None:
    rate = {"p0": 0.5, "p1": 0.5, "p2": 0.5, "p3": 0.5}
    for group in collect_until(solved(rate), accepted=2, rollouts_a_round=1, max_rollouts=8):
        accepted = [score.reward for score in group.scores if isinstance(score, Score)]
        assert sum(accepted) == 2 or len(accepted) == 8 or len(accepted) < 8
        if sum(accepted) == 2:
            assert accepted[-1] == 1.0  # nothing was sampled behind the one that sufficed


def test_rounds_grow_with_the_tries_where_no_size_is_set(recorded_rounds: list[tuple[int, int]]) -> None:
    rate = {"p0": 1.0, "p1": 0.0, "p2": 0.0, "p3": 0.0}
    groups = collect_until(solved(rate), accepted=2, max_rollouts=40, budget=40)
    assert [len(group.rollouts) for group in groups] == [2, 40, 40, 40]
    # As many as are wanted, and then a quarter of those tried; the last round stops at the bound.
    sizes = [2, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7]
    assert [size for _, size in recorded_rounds] == sizes
    assert [first for first, _ in recorded_rounds] == [sum(sizes[:place]) for place in range(len(sizes))]


def test_the_first_round_samples_nothing_in_vain() -> None:
    for wanted in (1, 2, 3):
        rate = {f"p{i}": 1.0 for i in range(4)}
        groups = collect_until(solved(rate), accepted=wanted)
        assert [len(group.rollouts) for group in groups] == [wanted] * 4


def test_growing_rounds_are_the_same_on_every_replica(run: FakeRun, other: FakeRun) -> None:
    score = solved({f"p{i}": i / 8 for i in range(6)} | {f"v{i}": 0.5 for i in range(4)})
    how: dict[str, Any] = {"until": {"accepted": 2, "at_least": 1, "max_rollouts": 20}, "min_reward": 1.0}
    (policy,) = run.start(score, steps=3, **how)
    replicas = other.start(score, steps=3, replicas=2, **how)
    assert {policy.weights for policy in replicas} == {policy.weights}
    sizes = {len(group.rollouts) for step in (1, 2, 3) for group in groups_of(run.ledger.read(step))}
    assert len(sizes) > 2


def test_a_run_that_samples_until_trains_on_groups_of_different_sizes(run: FakeRun, other: FakeRun) -> None:
    score = solved({f"p{i}": i / 5 for i in range(6)} | {f"v{i}": 0.5 for i in range(4)})
    how: dict[str, Any] = {
        "until": {"accepted": 1, "at_least": 1, "rollouts_a_round": 1, "max_rollouts": 9},
        "min_reward": 1.0,
    }
    (policy,) = run.start(score, steps=3, **how)
    sizes = {len(group.rollouts) for step in (1, 2, 3) for group in groups_of(run.ledger.read(step))}
    assert len(sizes) > 1
    for step in (1, 2, 3):
        kept = [row for row in run.ledger.read(step) if row.kept]
        assert all(row.reward == 1.0 for row in kept)
        assert len(kept) == len(policy.trained[step - 1])
    replicas = other.start(score, steps=3, replicas=2, **how)
    assert {policy.weights for policy in replicas} == {policy.weights}


# Scored rollouts of a file


def scored_groups(number: int) -> list[Group]:
    return [
        Group(
            Prompt(f"o{g}", f"text {g}", (g, 1), row=g),
            [Rollout(g, i, (g, i, 2), f"answer {i}", "stop") for i in range(3)],
            [Score(float(i)) if i < 2 else ScoreFailure("none") for i in range(3)],
        )
        for g in range(number)
    ]


def test_scored_rollouts_are_trained_on_without_sampling(run: FakeRun) -> None:
    (policy,) = run.start(steps=-1, epochs=1, interval=None, scored=scored_groups(6), offline=["unused"])
    assert policy.asked == []
    assert "submit" not in run.events
    assert {row["tokens/generated"] for row in run.rows} == {0}
    assert sorted(row.response[1] for rows in policy.trained for row in rows) == [1] * 6
    rows = [row for step in run.ledger.steps() for row in run.ledger.read(step)]
    assert len(rows) == 18  # the rejected, too, with their reasons
    assert {row.reason for row in rows} == {"kept", "not in the top n", "not scored"}


def test_the_distance_to_the_start_is_not_measured_on_what_another_run_sampled(run: FakeRun) -> None:
    """Another run's rollouts of version 0 are not those of this run's, whose start may be another policy."""
    groups = scored_groups(4)
    for group in groups:
        group.rollouts = [replace(r, log_probs=tuple(-1.0 for _ in r.token_ids)) for r in group.rollouts]
    run.start(steps=1, interval=None, scored=groups, offline=["unused"])
    assert "reference" not in run.events
    assert "kl/to_start" not in run.rows[0]


def test_scored_rollouts_without_any_score_train_nothing(
    run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    groups = scored_groups(2)
    for group in groups:
        group.scores = [ScoreFailure("none")] * 3
    with caplog.at_level("INFO", "rs_aligner"):
        (policy,) = run.start(steps=1, interval=None, scored=groups, offline=["unused"])
    assert policy.weights == "initial"
    assert "reward none, kept none (0 of 6)" in caplog.text


# Held-out prompts: patience and the best


def falling(prompt: Prompt, rollout: Rollout) -> Result:
    """Best at version 2, worse after it."""
    return Score(-abs(rollout.policy_version - 2.0) + rollout.index / 100)


def test_a_run_stops_when_validation_gains_nothing_and_exports_the_best(run: FakeRun) -> None:
    run.start(falling, steps=20, epochs=20, interval=1, patience=2)
    assert run.rows[-1]["step"] == 4
    best = json.loads((run.folder / "checkpoints" / "step_000002" / "state.json").read_text())
    assert (run.folder / "final" / "weights").read_text() == best["weights"]


def test_the_starting_policy_may_be_the_best(run: FakeRun) -> None:
    run.start(lambda prompt, rollout: Score(float(-rollout.policy_version)), steps=9, interval=1, patience=2)
    assert run.rows[-1]["step"] == 2
    assert (run.folder / "final" / "weights").read_text() == "initial"


def test_a_figure_as_good_as_the_best_is_no_better(run: FakeRun) -> None:
    run.start(lambda prompt, rollout: Score(1.0), steps=9, interval=1, patience=3)
    assert run.rows[-1]["step"] == 3


def test_a_run_that_was_interrupted_stops_where_another_would(run: FakeRun, other: FakeRun) -> None:
    run.start(falling, steps=20, epochs=20, interval=1, patience=3)
    for steps in (1, 3, 4, 20):
        other.start(falling, steps=steps, epochs=20, interval=1, patience=3)
    assert figures(other.rows) == figures(run.rows)
    assert (other.folder / "final" / "weights").read_text() == (run.folder / "final" / "weights").read_text()


def test_a_run_that_stopped_by_itself_does_nothing_when_started_again(
    run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run.start(falling, steps=20, epochs=20, interval=1, patience=2)
    before = run.rows
    with caplog.at_level("INFO", "rs_aligner"):
        (policy,) = run.start(falling, steps=20, epochs=20, interval=1, patience=2)
    assert policy.trained == []
    assert run.rows == before
    assert "nothing left to do" in caplog.text


# The judge that is only watched


def test_a_watched_judge_is_written_down_and_decides_nothing(run: FakeRun, other: FakeRun) -> None:
    (watched,) = run.start(steps=2, watched=lambda prompt, rollout: Score(float(len(rollout.token_ids))))
    (alone,) = other.start(steps=2)
    assert watched.weights == alone.weights
    for row in run.ledger.read(1):
        assert row.watched == len(row.token_ids)
    assert run.rows[0]["validation/watched"] == pytest.approx(run.rows[0]["validation/response_length/mean"])
    assert all(row.watched is None for row in other.ledger.read(1))


def test_a_watched_judge_that_fails_ends_nothing(run: FakeRun) -> None:
    run.start(steps=2, watched=lambda prompt, rollout: ScoreFailure("timed out"))
    assert "validation/watched" not in run.rows[0]
    assert run.rows[-1]["step"] == 2


def test_the_run_may_be_ranked_by_the_watched_judge(run: FakeRun) -> None:
    def watched(prompt: Prompt, rollout: Rollout) -> Result:
        return Score(float(-rollout.policy_version))

    run.start(
        by_tokens,
        steps=9,
        interval=1,
        patience=2,
        watched=watched,
        params={"monitor": "validation/watched"},
    )
    assert run.rows[-1]["step"] == 2
    assert (run.folder / "final" / "weights").read_text() == "initial"


# Filters that remember earlier steps


def test_duplicates_of_earlier_steps_are_known_after_a_restart_too(run: FakeRun, other: FakeRun) -> None:
    """Texts of one hexadecimal digit repeat themselves soon."""
    how: dict[str, Any] = {
        "selection": [{"name": "duplicates", "against": "both"}, {"name": "all"}],
        "save_interval": 1,
        "epochs": 9,
    }
    run.prompts = other.prompts = run.prompts[:4]
    short = {"text_length": 1}
    (whole,) = run.start(steps=5, **how, **short)
    assert any("rejected/duplicate" in row and row["rejected/duplicate"] > 0 for row in run.rows)
    other.start(steps=3, **how, **short)
    (continued,) = other.start(steps=5, **how, **short)
    assert continued.weights == whole.weights
    for row in range(4):
        texts = [
            one.response
            for step in run.ledger.steps()
            for one in run.ledger.read(step)
            if one.kept and one.prompt_row == row
        ]
        assert len(set(texts)) == len(texts)


def test_a_pool_that_is_trained_on_again_is_no_duplicate_of_itself(run: FakeRun) -> None:
    selection = [{"name": "duplicates", "against": "earlier"}]
    (policy,) = run.start(steps=3, selection=selection, pool={"improve_steps": 3})
    assert policy.trained[0] == policy.trained[1] == policy.trained[2]


def test_only_rows_that_this_version_sampled_are_compared_with_their_decoder(
    run: FakeRun, other: FakeRun
) -> None:
    """A bank's and those of an earlier step of the cycle had other weights; a file's are of anybody."""
    (policy,) = run.start(steps=4, epochs=9, pool={"max_staleness": 2}, top_n_rollouts=1)
    stale = 0
    for step, rows in enumerate(policy.trained, start=1):
        kept = [row for row in run.ledger.read(step) if row.kept]
        noted = [row.log_probs if row.policy_version == step - 1 else () for row in kept]
        assert sorted(row.decoder_log_probs for row in rows) == sorted(noted)
        assert any(noted)
        stale += noted.count(())
    assert stale
    (policy,) = other.start(steps=3, interval=None, pool={"improve_steps": 3})
    assert [all(row.decoder_log_probs for row in rows) for rows in policy.trained] == [True, False, False]
    assert not any(row.decoder_log_probs for rows in policy.trained[1:] for row in rows)


def test_rollouts_of_a_file_are_not_compared_with_this_runs_decoder(run: FakeRun) -> None:
    groups = [
        replace(group, rollouts=[replace(r, log_probs=(-1.0,) * len(r.token_ids)) for r in group.rollouts])
        for group in scored_groups(6)
    ]
    (policy,) = run.start(steps=1, interval=None, scored=groups, offline=["unused"])
    assert policy.trained[0]
    assert not any(row.decoder_log_probs for row in policy.trained[0])
