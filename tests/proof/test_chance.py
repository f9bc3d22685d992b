"""The figures of a step by hand, with groups of different sizes, failures, and nothing kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.proof.chance import distinct_ngrams, kl_to_start, proof_metrics
from rs_aligner.record.metrics import step_metrics
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Selection, select_topk

FAILED = ScoreFailure("timed out")


def a_rollout(group: int, index: int, tokens: tuple[int, ...] = (7,), log_prob: float = -1.0) -> Rollout:
    return Rollout(group, index, tokens, "", "stop", log_probs=tuple(log_prob for _ in tokens))


def a_group(number: int, rewards: list[float | None], rollouts: list[Rollout] | None = None) -> Group:
    rollouts = rollouts or [a_rollout(number, n, (number, n)) for n in range(len(rewards))]
    scores = [FAILED if reward is None else Score(reward) for reward in rewards]
    return Group(Prompt(str(number), "text", (1,)), rollouts, scores)


def keeping(*rows: list[int]) -> Selection:
    """A selection by 0 and 1; places beyond a short row exist in the mask and stand for no rollout."""
    widest = max(map(len, rows), default=0)
    keep = torch.tensor([row + [0] * (widest - len(row)) for row in rows], dtype=torch.bool)
    return Selection(keep.reshape(len(rows), widest), tuple(tuple("x" for _ in row) for row in rows))


def measure(rewards: list[list[float | None]], keep: list[list[int]], **kwargs: Any) -> dict[str, float]:
    return proof_metrics([a_group(g, row) for g, row in enumerate(rewards)], keeping(*keep), **kwargs)


def test_the_control_of_groups_of_different_sizes_by_hand():
    metrics = measure([[0.0, 2.0], [5.0], [1.0, None, 4.0]], [[0, 1], [1], [0, 0, 0]])
    # One of {0, 2} and all of {5}: mean (1 + 5) / 2, deviation 1 / 2; kept were 2 and 5.
    assert metrics["control/random_mean"] == 3.0
    assert metrics["control/random_std"] == 0.5
    assert metrics["control/z"] == 1.0
    assert metrics["reward/kept_minus_mean"] == pytest.approx(3.5 - 12 / 5)
    assert metrics["reward/headroom"] == 0.0
    assert metrics["kl/best_of_n"] == pytest.approx((math.log(2) - 0.5 + 0.0) / 2)


def test_headroom_is_what_the_best_of_the_same_groups_would_have_added():
    metrics = measure([[0.0, 2.0, 6.0], [3.0, 9.0]], [[0, 1, 1], [1, 0]])
    assert metrics["reward/headroom"] == pytest.approx(((6 - 2) + (6 - 6) + (9 - 3)) / 3)


def test_best_of_k_is_a_mean_over_the_groups_that_are_large_enough():
    metrics = measure([[1.0, 2.0, 4.0], [5.0], [None, None]], [[0, 0, 1], [1], [0, 0]])
    assert metrics["best_of/1"] == pytest.approx((7 / 3 + 5) / 2)
    assert metrics["best_of/2"] == pytest.approx(10 / 3)
    assert metrics["best_of/3"] == 4.0
    assert "best_of/4" not in metrics


def test_what_passes_is_above_the_bar():
    rewards: list[list[float | None]] = [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [None, None]]
    metrics = measure(rewards, [[0, 1], [1, 0], [1, 0], [0, 0]])
    assert metrics["pass_at/1"] == 0.5
    assert metrics["pass_at/2"] == pytest.approx(2 / 3)
    assert metrics["groups/decidable"] == pytest.approx(1 / 3)
    assert metrics["groups/all_passed"] == pytest.approx(1 / 3)
    assert metrics["groups/none_passed"] == pytest.approx(1 / 3)
    assert measure(rewards, [[0, 1], [1, 0], [1, 0], [0, 0]], passed_above=1.0)["pass_at/2"] == 0.0


def test_kept_against_all_in_length_and_log_probability():
    rollouts = [a_rollout(0, 0, (1, 2), -1.0), a_rollout(0, 1, (3, 4, 5, 6), -0.25)]
    metrics = proof_metrics([a_group(0, [0.0, 1.0], rollouts)], keeping([0, 1]))
    assert metrics["shift/response_length"] == 1.0
    assert metrics["entropy"] == pytest.approx((2 * 1.0 + 4 * 0.25) / 6)  # tokens count the same
    assert metrics["shift/log_prob"] == pytest.approx(-0.25 + 0.5)


def test_variety_by_hand():
    same, other = (1, 1, 2), (1, 2)
    rollouts = [a_rollout(0, n, tokens) for n, tokens in enumerate([same, same, other])]
    group = a_group(0, [0.0, 0.0, 1.0], rollouts)
    elsewhere = a_group(1, [0.0], [a_rollout(1, 0, same)])  # equal, but an answer to another prompt
    metrics = proof_metrics([group, elsewhere], keeping([0, 0, 1], [1]))
    assert metrics["duplicates/share"] == pytest.approx(1 / 4)
    assert metrics["distinct/1"] == pytest.approx(2 / 11)
    assert metrics["distinct/2"] == pytest.approx(2 / 7)  # (1, 1) and (1, 2)
    assert metrics["distinct/3"] == pytest.approx(1 / 3)
    assert metrics["distinct/kept_1"] == pytest.approx(2 / 5)
    assert metrics["distinct/kept_2"] == pytest.approx(2 / 3)
    assert metrics["distinct/kept_3"] == 1.0


@given(st.lists(st.lists(st.integers(0, 3) | st.just(2**31 - 1), max_size=6), max_size=6))
def test_distinct_ngrams_are_those_of_a_set(sequences):
    expected = []
    for size in (1, 2, 3):
        grams = [tuple(s[i : i + size]) for s in sequences for i in range(len(s) - size + 1)]
        expected.append(len(set(grams)) / len(grams) if grams else None)
    assert distinct_ngrams(sequences) == tuple(expected)


def test_what_is_undefined_is_absent():
    nothing_scored = measure([[None, None]], [[0, 0]])
    assert set(nothing_scored) == {"entropy", "duplicates/share", "distinct/1", "distinct/2"}
    nothing_kept = measure([[0.0, 1.0]], [[0, 0]])
    assert not {"control/z", "reward/headroom", "shift/log_prob", "kl/best_of_n"} & set(nothing_kept)
    assert nothing_kept["best_of/2"] == 1.0
    assert proof_metrics([], keeping()) == {}
    no_log_probs = [Rollout(0, 0, (1,), "", "stop")]
    assert "entropy" not in proof_metrics([a_group(0, [1.0], no_log_probs)], keeping([1]))


def test_no_choice_has_no_z():
    for rewards in ([[1.0, 1.0]], [[0.1 + 0.2, 0.3]]):  # equal, and equal but for rounding
        metrics = measure(rewards, [[1, 0]])
        assert "control/z" not in metrics
        assert metrics["groups/decidable"] == float(len(set(rewards[0])) > 1)
    assert "control/z" not in measure([[1.0, 2.0]], [[1, 1]])


ragged = st.lists(st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=5), min_size=1, max_size=5)


@given(ragged, st.data())
def test_whatever_the_step_every_figure_is_a_number_and_within_its_bounds(rewards, data):
    keep = [[int(r is not None and data.draw(st.booleans())) for r in row] for row in rewards]
    metrics = measure(rewards, keep)
    assert all(math.isfinite(value) for value in metrics.values())
    for key, value in metrics.items():
        if key.startswith(("pass_at/", "groups/", "distinct/", "duplicates/")):
            assert 0 <= value <= 1, key
        if key.startswith(("control/random_std", "reward/headroom", "kl/")):
            assert value >= 0, key


@given(st.integers(1, 5), st.integers(2, 6), st.data())
def test_the_best_of_each_prompt_reaches_best_of_n_and_leaves_no_headroom(num_prompts, num_rollouts, data):
    rewards = [[data.draw(st.floats(-5, 5)) for _ in range(num_rollouts)] for _ in range(num_prompts)]
    values = torch.tensor(rewards, dtype=torch.float64)
    selection = keeping(*select_topk(values, 1).int().tolist())
    groups = [a_group(g, list(row)) for g, row in enumerate(rewards)]
    plain, proof = step_metrics(groups, selection), proof_metrics(groups, selection)
    assert proof["reward/headroom"] == 0
    assert plain["reward/kept_mean"] == pytest.approx(proof[f"best_of/{num_rollouts}"], abs=1e-12)
    assert plain["reward/mean"] == pytest.approx(proof["best_of/1"], abs=1e-9)
    assert plain["reward/mean"] == pytest.approx(proof["control/random_mean"], abs=1e-9)


def test_a_selection_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 rows for 1 groups"):
        measure([[1.0]], [[1], [1]])
    with pytest.raises(ValueError, match="group 0 has 2 rollouts, the selection 1 places"):
        measure([[1.0, 2.0]], [[1]])


def test_kl_to_the_start_is_a_mean_over_tokens():
    rollouts = [a_rollout(0, 0, (1, 2, 3), -1.0), a_rollout(0, 1, (4,), -2.0)]
    assert kl_to_start(rollouts, [(-1.5, -1.5, -1.5), (-1.0,)]) == {
        "kl/to_start": pytest.approx((1.5 - 1.0) / 4)
    }
    assert kl_to_start([], []) == {}
    with pytest.raises(ValueError, match="1 reference rows for 2 rollouts"):
        kl_to_start(rollouts, [(-1.0,)])
    with pytest.raises(ValueError, match=r"rollout 0: 3 tokens, 3 log-probabilities, 1 under"):
        kl_to_start(rollouts, [(-1.0,), (-1.0,)])
