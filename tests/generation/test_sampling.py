"""Tokens come with exactly the probabilities that temperature and filters define."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rs_aligner.generation.sampling import Controls, choose, derive_seed, penalize, uniforms

DRAWS = 100_000
LOGITS = [2.0, -1.0, 0.5, 1.5, 0.0, -3.0, 1.0, 0.25]


def draw(logits: list[float], controls: Controls, draws: int = DRAWS, seed: int = 5) -> np.ndarray:
    """How often each token came."""
    uniform = torch.from_numpy(uniforms([seed] * draws, range(draws)))
    tokens = choose(torch.tensor(logits).expand(draws, -1), controls, uniform)
    return np.bincount(tokens.numpy(), minlength=len(logits))


def exact(logits: list[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    """The probabilities, worked out in plain Python."""
    weights = [math.exp(logit / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        order = order[:top_k]
    total, kept, sum_kept = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if sum_kept < top_p * total:
            kept.append(i)
            sum_kept += weights[i]
    return [weights[i] / sum_kept if i in kept else 0.0 for i in range(len(logits))]


def p_value(counts: np.ndarray, probs: list[float]) -> float:
    """Of Pearson's chi-squared test; a token of probability zero must not come at all."""
    expected = np.array(probs) * counts.sum()
    possible = expected > 0
    assert not counts[~possible].any()
    statistic = float(((counts[possible] - expected[possible]) ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(statistic / 2.0)))


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_k": 8},
        {"top_p": 0.6},
        {"top_p": 0.95},
        {"top_k": 4, "top_p": 0.7},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    ],
    ids=str,
)
def test_tokens_come_as_often_as_their_probability_says(filters: dict[str, Any]) -> None:
    assert p_value(draw(LOGITS, Controls(**filters)), exact(LOGITS, **filters)) > 1e-3


def test_the_test_of_frequencies_sees_a_wrong_temperature() -> None:
    assert p_value(draw(LOGITS, Controls(temperature=1.03)), exact(LOGITS)) < 1e-3


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() -> None:
    seen = torch.tensor([[True, True, False, False, True, False, False, False]])
    penalized = penalize(torch.tensor([LOGITS]), seen, 2.0)[0].tolist()
    assert penalized == [1.0, -2.0, 0.5, 1.5, 0.0, -3.0, 1.0, 0.25]
    assert p_value(draw(penalized, Controls()), exact(penalized)) > 1e-3


def test_a_token_that_must_not_come_never_does() -> None:
    logits = [*LOGITS[:-1], -math.inf]
    counts = draw(logits, Controls())
    assert counts[-1] == 0
    assert p_value(counts[:-1], exact(LOGITS[:-1])) > 1e-3


def test_tokens_that_tie_with_the_kth_all_stay() -> None:
    counts = draw([1.0, 0.0, 0.0, -1.0], Controls(top_k=2))
    assert p_value(counts, [math.e / (math.e + 2), 1 / (math.e + 2), 1 / (math.e + 2), 0.0]) > 1e-3


def test_top_p_always_leaves_the_likeliest() -> None:
    assert draw(LOGITS, Controls(top_p=1e-9)).tolist() == [DRAWS, 0, 0, 0, 0, 0, 0, 0]


def test_greedy_takes_the_likeliest_whatever_the_filters() -> None:
    logits = torch.tensor([LOGITS, LOGITS[::-1]])
    controls = Controls(greedy=True, temperature=9.0, top_k=3, top_p=0.5)
    assert choose(logits, controls, torch.tensor([0.99, 0.99])).tolist() == [0, 7]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_ends_of_the_unit_interval_give_tokens_of_probability_above_zero(top_p: float) -> None:
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.0, -math.inf]]).expand(2, -1)
    nearly_one = np.nextafter(1.0, 0.0)
    tokens = choose(logits, Controls(top_p=top_p), torch.tensor([0.0, nearly_one], dtype=torch.float64))
    assert tokens.tolist() == [1, 3]


def test_a_large_vocabulary_keeps_rare_tokens() -> None:
    """Single precision sums would lose what one token in a hundred thousand has."""
    logits = torch.zeros(1, 100_000)
    uniform = torch.tensor([(v + 0.5) / 100_000 for v in (0, 1, 77_777, 99_998, 99_999)]).double()
    chosen = choose(logits.expand(5, -1), Controls(), uniform)
    assert (chosen - torch.tensor([0, 1, 77_777, 99_998, 99_999])).abs().max() <= 1


# The random numbers


def kolmogorov_smirnov(sample: np.ndarray) -> float:
    """Distance from the uniform distribution, times the root of the size; above 1.95 once in 1,000."""
    ordered, n = np.sort(sample), len(sample)
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1]))


def test_uniforms_are_uniform_along_positions_and_along_seeds() -> None:
    n = 100_000
    seeds = [derive_seed(1234, 1, position, index) for position in range(250) for index in range(8)]
    along_positions = uniforms([seeds[0]] * n, range(n))
    along_seeds = uniforms(seeds, [0] * len(seeds))
    neighbours = uniforms(range(n), [3] * n)
    for sample in (along_positions, along_seeds, neighbours):
        assert sample.min() >= 0
        assert sample.max() < 1
        assert kolmogorov_smirnov(sample) < 1.95


def test_uniforms_of_neighbours_are_unrelated() -> None:
    n = 100_000
    seed = derive_seed(1, 2, 3, 4)
    first = uniforms([seed] * n, range(n))
    next_rollout = uniforms([derive_seed(1, 2, 3, 5)] * n, range(n))
    next_seed = uniforms([seed + 1] * n, range(n))
    for other in (np.roll(first, 1), next_rollout, next_seed):
        assert abs(np.corrcoef(first, other)[0, 1]) < 4 / math.sqrt(n)


def test_a_number_depends_on_its_seed_and_position_only() -> None:
    together = uniforms([7, 8, 9], [0, 5, 2])
    assert [float(uniforms([s], [p])[0]) for s, p in ((7, 0), (8, 5), (9, 2))] == together.tolist()


def test_seeds_differ_wherever_one_of_their_parts_does() -> None:
    parts = [(run, step, p, i) for run in (0, 1) for step in range(5) for p in range(40) for i in range(16)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 2) != derive_seed(2, 1) != derive_seed(2, 1, 0)


def test_seeds_stay_the_same_from_release_to_release() -> None:
    """A change here changes every rollout of every run that continues."""
    assert derive_seed(1234, 1, 0, 0) == 4473272623958205672
    assert uniforms([4473272623958205672], [0])[0] == 0.2750507442328386


# What is refused


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.nan}, "temperature=nan must be above 0"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be above 0"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
        ({"min_length": -1}, "min_length=-1 must be between 0 and max_length"),
        ({"min_length": 9, "max_length": 8}, "min_length=9 must be between 0 and max_length"),
        ({"end_strings": ("a", "")}, "end_strings=.* must be without empty strings"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_with_the_range(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Controls(**wrong)
