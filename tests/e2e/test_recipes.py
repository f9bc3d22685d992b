"""Each recipe that ships, run for real: a small pretrained model, its judge in this process.

What is checked is what makes the recipe: who is kept, from which rollouts, what is trained and when it ends,
by ledger and metrics, and by what the policy was told to do. One recipe goes through the command line as
users start it; the others share this process. That they compose is in tests/config/test_recipes.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch

from rs_aligner.commands.train_rs import fit
from rs_aligner.config import TrainRSConfig, load_config
from tests.config.conftest import compose
from tests.e2e.launch import run_script
from tests.e2e.recipe_runs import Finished, Spy, answer_of, warm_up, watch_policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_PROMPTS, NUM_PROBLEMS, LENGTH = 8, 22, 32

Start = Callable[..., Finished]


@pytest.fixture(scope="module")
def prompts(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first stories of either file."""
    folder = tmp_path_factory.mktemp("prompts")
    for name in ("train", "validation"):
        lines = (test_data / "tinystories" / f"prompts_{name}.jsonl").read_text().splitlines()
        (folder / f"{name}.jsonl").write_text("\n".join(lines[:NUM_PROMPTS]) + "\n")
    return folder


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return watch_policy(monkeypatch)


@pytest.fixture
def start(test_data: Path, prompts: Path, tmp_path: Path, spy: Spy) -> Iterator[Start]:
    """Runs a recipe with overrides."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(name: str, *overrides: str, data: bool = True) -> Finished:
        folder = tmp_path / f"run_{len(spy.calls)}"
        spy.calls, spy.trained = [], []
        stories = (
            f"model.data.data_prefix.train={prompts / 'train.jsonl'}",
            f"model.data.data_prefix.validation={prompts / 'validation.jsonl'}",
        )
        tree = compose(
            f"recipes/{name}",
            [
                f"exp_manager.explicit_log_dir={folder}",
                f"pretrained_checkpoint.restore_from_path={test_data / 'stories260k'}",
                *("trainer.accelerator=cpu", "trainer.threads=1"),
                *("remote_rm.in_process=true", "remote_rm.judge.name=sentiment"),
                *("model.micro_batch_size=16", "model.global_batch_size=16"),
                f"model.rs.length_params.max_length={LENGTH}",
                *(stories if data else ()),
                *overrides,
            ],
        )
        fit(load_config(tree, TrainRSConfig))
        return Finished(folder, spy)

    yield run
    torch.set_num_threads(threads)


def test_nemo_rs_keeps_the_best_of_each_new_group_by_the_command_line(
    test_data: Path, prompts: Path, tmp_path: Path
) -> None:
    done = run_script(
        "train_rs.py",
        *("--config-name", "recipes/nemo_rs", "exp_manager.create_tensorboard_logger=false"),
        f"exp_manager.explicit_log_dir={tmp_path / 'run'}",
        f"pretrained_checkpoint.restore_from_path={test_data / 'stories260k'}",
        f"model.data.data_prefix={{train: [{prompts}/train.jsonl], validation: [{prompts}/validation.jsonl],"
        f" test: [{prompts}/train.jsonl]}}",
        *("trainer.rs.max_epochs=1", "trainer.rs.max_steps=313", "trainer.rs.val_check_interval=2"),
        *("model.global_batch_size=4", "model.micro_batch_size=1", "model.optim.lr=1e-4"),
        *("model.rs.num_rollout_samples=4", "model.rs.rollout_micro_batch_size=2"),
        *("model.rs.num_rollouts_per_prompt=8", "model.rs.top_n_rollouts=1"),
        f"++model.rs.length_params.max_length={LENGTH}",
        *("trainer.accelerator=cpu", "remote_rm.in_process=true", "remote_rm.judge.name=sentiment"),
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    assert "model.data.data_prefix.test has no effect" in done.stdout
    run = Finished(tmp_path / "run", Spy())
    assert [row["consumed_prompts"] for row in run.metrics] == [4, 8]
    for row in run.metrics:
        assert row["reward/kept_mean"] == pytest.approx(row["reward/best_of_n"])
        assert row["tokens/generated"] > 0
        for group in run.groups(row["step"]):
            assert {rollout.policy_version for rollout in group} == {row["step"] - 1}
            [kept] = [rollout for rollout in group if rollout.kept]
            assert kept.reward == max(rollout.reward for rollout in group if rollout.reward is not None)
    assert list(run.held_out) == [0, 2]


def test_trlx_rft_trains_one_pool_four_times_with_a_bar_that_rises_to_the_end(start: Start) -> None:
    run = start(
        "trlx_rft",
        *("model.rs.num_rollout_samples=4", "model.rs.rft.n_generations_per_prompt=24"),
        "model.rs.rft.gen_kwargs={max_new_tokens: 32, temperature: 1.0, top_k: 0, top_p: 1.0}",
    )
    assert [row["step"] for row in run.metrics] == list(range(1, 9))  # two draws of four prompts
    assert [row["tokens/generated"] > 0 for row in run.metrics] == [True, False, False, False] * 2
    assert [row["consumed_prompts"] for row in run.metrics] == [4] * 4 + [8] * 4
    for first in (1, 5):
        pool: dict[int, dict[str, tuple[int, float]]] = {}  # of each prompt: text -> (first index, reward)
        samples: dict[int, list[float]] = {}  # of each prompt: the rewards of all, equal texts counted
        for row in run.ledger(first):
            assert row.reward is not None
            pool.setdefault(row.prompt_row, {}).setdefault(row.response, (row.index, row.reward))
            samples.setdefault(row.prompt_row, []).append(row.reward)
        lowest = min(reward for rewards in samples.values() for reward in rewards)
        for turn, percentile in enumerate((0.7, 0.7 + 0.25 / 3, 0.7 + 0.5 / 3, 0.95)):
            expected = {
                (prompt, index)
                for prompt, texts in pool.items()
                for index, reward in texts.values()
                if reward >= np.quantile(samples[prompt], percentile) - 1e-9 and reward > lowest
            }
            kept = {(row.prompt_row, row.index) for row in run.ledger(first + turn) if row.kept}
            assert kept == expected
        counts = [row["rollouts/kept"] for row in run.metrics[first - 1 : first + 3]]
        means = [row["reward/kept_mean"] for row in run.metrics[first - 1 : first + 3]]
        assert counts[0] > counts[-1]
        assert all(early >= late for early, late in pairwise(counts))
        assert all(early <= late + 1e-9 for early, late in pairwise(means))
    assert len({len(rows) for rows in run.spy.trained}) > 1


@pytest.fixture(scope="module")
def solver(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy warmed up to answer a question with a random addition; problems whose answers it can hit."""
    return warm_up(test_data, tmp_path_factory.mktemp("solver"))


def on_problems(solver: Path) -> tuple[str, ...]:
    return (
        f"pretrained_checkpoint.restore_from_path={solver / 'policy'}",
        f"model.data.data_prefix.train={solver / 'train.jsonl'}",
        f"model.data.data_prefix.validation={solver / 'validation.jsonl'}",
        "model.data.prompt_template='Question: {question} Answer:'",
        "remote_rm.judge.name=final_answer",
    )


def test_rft_verifiable_learns_the_different_right_solutions_of_problems(start: Start, solver: Path) -> None:
    run = start("rft_verifiable", *on_problems(solver), data=False)
    [row] = run.metrics
    assert row["rollouts/total"] == NUM_PROBLEMS * 100
    assert row["rollouts/kept"] > 0
    assert row["reward/kept_mean"] == 1
    assert row["rejected/not_positive"] > 0
    for group in run.groups(1):
        right = {rollout.response for rollout in group if rollout.reward == 1}
        kept = [rollout for rollout in group if rollout.kept]
        assert len(kept) <= 4
        assert bool(kept) == any(r.reward == 1 and r.finish_reason == "stop" for r in group)
        assert len({rollout.response for rollout in kept}) == len(kept)  # each a path of its own
        assert {rollout.response for rollout in kept} <= right
        assert {rollout.finish_reason for rollout in kept} <= {"stop"}
        answer = f"{answer_of(group[0].metadata):g}"
        assert all(answer in rollout.response for rollout in kept)
    assert max(sum(rollout.kept for rollout in group) for group in run.groups(1)) > 1
    assert len(run.spy.trained) == 3
    assert run.spy.trained[0] == run.spy.trained[1] == run.spy.trained[2]


def test_raft_passes_twice_over_the_best_of_each_new_stage(start: Start) -> None:
    run = start("raft", "model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=8")
    assert [row["rollouts/kept"] for row in run.metrics] == [4, 4]
    for row in run.metrics:
        assert row["reward/kept_mean"] == pytest.approx(row["reward/best_of_n"])
        assert {rollout.policy_version for rollout in run.ledger(row["step"])} == {row["step"] - 1}
    assert "restart" not in dict(run.spy.calls)
    first, again, second, once_more = run.spy.trained
    assert first == again != second == once_more
    weights = run.spy.weights("train")
    assert len(set(weights)) == 4  # each pass goes on from the one before
    assert run.spy.weights("export") == weights[-1:]


def test_rest_em_trains_the_start_anew_and_leaves_the_best_iteration(start: Start, solver: Path) -> None:
    run = start(
        "rest_em",
        *on_problems(solver),
        *("trainer.rs.max_epochs=6", "trainer.rs.patience=2"),
        *("model.rs.num_rollouts_per_prompt=16", "model.rs.top_n_rollouts=2"),
        *("model.optim.lr=1e-4", "model.rs.num_val_rollouts_per_prompt=4"),
        "model.rs.val_sampling_params.use_greedy=false",
        data=False,
    )
    for row in run.metrics:
        for group in run.groups(row["step"]):
            right = [r for r in group if r.reward == 1 and r.finish_reason == "stop"]
            assert sum(rollout.kept for rollout in group) == min(2, len(right))
            assert all(rollout.reward == 1 for rollout in group if rollout.kept)
            assert {rollout.policy_version for rollout in group} == {row["step"] - 1}
    _each_iteration_starts_from_the_same_weights(run, passes=3)
    highest, last = max(run.held_out.values()), run.metrics[-1]["step"]
    with_highest = [step for step, reward in run.held_out.items() if reward == highest]
    assert last == min(6, with_highest[0] + 2)
    saved = dict(zip(run.held_out, run.spy.weights("save"), strict=True))
    assert run.spy.weights("export") == [saved[with_highest[-1]]]


def _each_iteration_starts_from_the_same_weights(run: Finished, passes: int) -> None:
    starts, trained = run.spy.weights("restart"), run.spy.weights("train")
    beginning = run.spy.calls[0][1]
    assert run.spy.calls[0][0] == "generate"
    assert starts == [beginning] * len(run.metrics)
    assert len(starts) > 1
    assert len(trained) == passes * len(starts)
    for weights, rows in zip(trained, run.spy.trained, strict=True):
        assert (weights == beginning) == (not rows)
    assert any(run.spy.trained[-passes:] + run.spy.trained[:passes])
    calls = [call for call, _ in run.spy.calls if call in ("restart", "train")]
    assert calls == ["restart", *["train"] * passes] * len(starts)


def test_star_learns_its_right_greedy_answers_from_the_start_each_time(start: Start, solver: Path) -> None:
    run = start(
        "star",
        *on_problems(solver),
        *("trainer.rs.max_epochs=3", "model.optim.lr=3e-5", "model.optim.sched.warmup_steps=0"),
        data=False,
    )
    assert len(run.metrics) == 3
    kept = 0
    for row in run.metrics:
        rows = run.ledger(row["step"])
        assert [len(group) for group in run.groups(row["step"])] == [1] * NUM_PROBLEMS
        for rollout in rows:
            wanted = rollout.finish_reason == "stop" and rollout.reward is not None and rollout.reward > 0
            assert rollout.kept == wanted
        kept += sum(rollout.kept for rollout in rows)
    assert 0 < kept < 3 * NUM_PROBLEMS
    _each_iteration_starts_from_the_same_weights(run, passes=1)


def test_expert_iteration_keeps_the_best_above_the_median(start: Start) -> None:
    run = start("expert_iteration", "model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=16")
    for row in run.metrics:
        for group in run.groups(row["step"]):
            rewards = sorted(rollout.reward for rollout in group if rollout.reward is not None)
            above = [reward for reward in rewards if reward > np.median(rewards)]
            kept = sorted(rollout.reward for rollout in group if rollout.kept)
            assert kept == above[-4:]
        assert row["rejected/not_above_median"] >= row["rollouts/total"] / 2
    assert len(run.metrics) == 2


def test_grpo_like_learns_from_the_rejected_too(start: Start) -> None:
    run = start(
        "grpo_like",
        *("model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=8"),
        *("model.global_batch_size=16", "model.optim.lr=1e-3"),
    )
    for row, rows in zip(run.metrics, run.spy.trained, strict=True):
        assert row["rollouts/kept"] == row["rollouts/scored"] == 32
        assert {"kl", "clip_fraction", "objective/groups_without_signal"} <= set(row)
        assert row["reward/kept_minus_mean"] == pytest.approx(0)
        assert "control/z" not in row  # nothing was chosen
        sampled = {(rollout.prompt_token_ids, rollout.token_ids) for rollout in run.ledger(row["step"])}
        assert {(one.prompt, one.response) for one in rows} <= sampled
        assert min(one.weight for one in rows) < 0 < max(one.weight for one in rows)
        for group in run.groups(row["step"]):
            rewards = [rollout.reward for rollout in group if rollout.reward is not None]
            weights = [one.weight for one in rows if one.prompt == group[0].prompt_token_ids]
            assert mean(weights or [0.0]) == pytest.approx(0, abs=1e-6)
            expected = (np.array(rewards) - mean(rewards)) / (np.std(rewards, ddof=1) + 1e-6)
            nonzero = [weight for weight in expected if weight]
            assert sorted(weights) == pytest.approx(sorted(nonzero), abs=1e-6)
        for one in rows:
            assert len(one.sampled_log_probs) == len(one.reference_log_probs) == len(one.response)
    assert len(run.metrics) == 2
    assert all(row["kl"] > 0 for row in run.metrics)  # already the second batch meets other weights


def test_offline_best_of_n_learns_the_best_of_an_earlier_run_and_samples_nothing(start: Start) -> None:
    earlier = start("nemo_rs", "model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=8")
    best = {
        max(group, key=lambda row: (row.reward or 0.0, -row.index)).token_ids
        for step in (1, 2)
        for group in earlier.groups(step)
    }
    sampled = [(row.prompt_id, row.index, row.reward) for step in (1, 2) for row in earlier.ledger(step)]
    ledger = shutil.copytree(earlier.folder / "rollouts", earlier.folder.parent / "earlier")
    run = start("offline_best_of_n", f"model.rs.offline={ledger}", data=False)
    [row] = run.metrics
    assert "generate" not in dict(run.spy.calls)
    assert row["tokens/generated"] == 0
    assert sorted((r.prompt_id, r.index, r.reward) for r in run.ledger(1)) == sorted(sampled)
    [rows] = run.spy.trained
    assert {one.response for one in rows} == best
    assert len(rows) == 8
    assert run.spy.weights("export") == run.spy.weights("train")
