"""What a set of scored samples says about other ways to choose among them, in closed form.

Pure functions of the scores of one prompt's samples: the best of k, pass@k, a choice at random, and how far
keeping the best moves a distribution. Each is the exact expectation over all subsets, so nothing is drawn and
nothing is repeated. Left out on purpose: what is averaged over which prompts (`proof`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_EVERY_K = 16  # up to here every k is reported, then powers of two
_NODES = 400  # of the integral in top_k_divergence; 1e-9 off for 4,096 samples


def reported_ks(num: int) -> tuple[int, ...]:
    """The sizes k for which a table of best-of-k is given: 1 to 16, then powers of two, and `num` itself."""
    powers = {1 << power for power in range(num.bit_length())}
    return tuple(k for k in sorted({*range(1, _EVERY_K + 1), *powers, num}) if 1 <= k <= num)


def powers_of_two(num: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `num`, and `num` itself."""
    return tuple(sorted({1 << power for power in range(num.bit_length())} | {num})) if num > 0 else ()


def best_of_k(scores: Sequence[float], ks: Sequence[int]) -> Floats:
    """Expected maximum of k of the scores, drawn without replacement; unbiased for k fresh samples.

    The i-th smallest of n scores is the maximum in C(i-1, k-1) of the C(n, k) subsets.

    Args:
        scores: n finite numbers.
        ks: sizes, each from 1 to n.

    Returns:
        float64 `[len(ks)]`.

    Raises:
        ValueError: a size is not from 1 to n.
    """
    num = len(scores)
    if any(not 1 <= k <= num for k in ks):
        raise ValueError(f"k must be from 1 to the {num} scores, not {[k for k in ks if not 1 <= k <= num]}")
    weights_KN = np.stack([_weights_of_maximum(num, k) for k in ks]) if ks else np.zeros((0, num))
    result: Floats = weights_KN @ np.sort(np.asarray(scores, dtype=np.float64))
    return result


@functools.lru_cache(maxsize=4096)
def _weights_of_maximum(num: int, k: int) -> Floats:
    """Probability that the i-th smallest of `num` is the maximum of k: C(i-1, k-1) / C(num, k)."""
    weights = np.zeros(num)
    weight = k / num
    for place in range(num, k - 1, -1):  # from the largest down, by the ratio of neighbours: never overflows
        weights[place - 1] = weight
        if place > 1:
            weight *= (place - k) / (place - 1)
    return weights


def pass_at_k(num: int, num_passed: int, k: int) -> float:
    """Probability that at least one of k samples passes: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al., "Evaluating large language models trained on code" (2021).

    Args:
        num: samples n that were judged.
        num_passed: how many of them passed, c.
        k: from 1 to n.

    Raises:
        ValueError: the numbers do not fit together.
    """
    if not (0 <= num_passed <= num and 1 <= k <= num):
        raise ValueError(f"{num_passed} passed of {num}, and k = {k}: needs 0 <= c <= n and 1 <= k <= n")
    if k > num - num_passed:
        return 1.0
    none_passes = 1.0
    for i in range(k):
        none_passes *= (num - num_passed - i) / (num - i)
    return 1.0 - none_passes


def random_choice(groups: Iterable[tuple[Sequence[float], int]]) -> tuple[float, float] | None:
    """Mean and standard deviation of the mean reward of a choice at random.

    From a group of n scores k are drawn without replacement, independently of other groups, and the mean is
    taken over all that are drawn, K. With m and s^2 a group's mean and variance (divisor n - 1), the
    expectation is sum(k m) / K and the variance sum(k s^2 (1 - k / n)) / K^2.

    Args:
        groups: the scores of each group with the number that is drawn of them.

    Returns:
        The two; None where nothing is drawn.

    Raises:
        ValueError: more are to be drawn than there are.
    """
    total = expected = variance = 0.0
    for scores, num_drawn in groups:
        num = len(scores)
        if not 0 <= num_drawn <= num:
            raise ValueError(f"{num_drawn} cannot be drawn of {num} scores without replacement")
        if num_drawn == 0:
            continue
        total += num_drawn
        expected += num_drawn * math.fsum(scores) / num
        if num_drawn < num:
            variance += num_drawn * float(np.var(scores, ddof=1)) * (1 - num_drawn / num)
    return (expected / total, math.sqrt(variance) / total) if total else None


@functools.lru_cache(maxsize=4096)
def top_k_divergence(num: int, num_kept: int) -> float:
    """Kullback-Leibler divergence of "one of the best k of n" from the sampler, in nats.

    The quantile u of what is kept has the density (n / k) P(at least n - k of n - 1 uniforms are below u).
    The divergence is the integral of its p ln p where no two scores are equal, and an upper bound where some
    are. For k = 1 it is the known ln n - (n - 1) / n; for large n it comes to ln(n / k).

    Source of k = 1: Beirami et al., "Theoretical guarantees on the best-of-n alignment policy" (2024).

    Args:
        num: samples n of a prompt.
        num_kept: how many of the best are kept, k, from 1 to n.

    Raises:
        ValueError: k is not from 1 to n.
    """
    if not 1 <= num_kept <= num:
        raise ValueError(f"num_kept must be from 1 to {num}, not {num_kept}")
    if num_kept == num:
        return 0.0
    if num_kept == 1:
        return math.log(num) - (num - 1) / num
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    below = (nodes + 1) / 2  # from [-1, 1] to [0, 1]
    successes = np.arange(num - num_kept, num)
    log_binomials = np.array(
        [math.lgamma(num) - math.lgamma(s + 1) - math.lgamma(num - s) for s in successes.tolist()]
    )
    log_terms = (
        log_binomials[:, None]
        + successes[:, None] * np.log(below)
        + (num - 1 - successes)[:, None] * np.log1p(-below)
    )
    density = num / num_kept * np.exp(log_terms).sum(axis=0)
    # 0 ln 0 is 0.
    integrand = density * np.log(np.maximum(density, np.finfo(np.float64).tiny))
    return float(weights @ integrand) / 2


@functools.lru_cache(maxsize=65536)
def kept_probability(num: int, num_better: int, num_drawn: int, num_kept: int) -> float:
    """Probability that a sample is drawn, and is among the best of what is drawn.

    Of n samples N are drawn without replacement. The sample is one of them with probability N / n; how many
    of the b better ones are among the other N - 1 is hypergeometric, and fewer than k may be. The sum of
    probability times score over all samples is the expected sum of what keeping the best k of N keeps; for
    k = 1 it is `best_of_k`.

    Args:
        num: samples n.
        num_better: how many of the others would be kept before it, b.
        num_drawn: N, from 1 to n.
        num_kept: k, at least 1.

    Raises:
        ValueError: the numbers do not fit together.
    """
    if not (0 <= num_better < num and 1 <= num_drawn <= num and num_kept >= 1):
        raise ValueError(
            f"{num_better} better ones of {num}, of which {num_drawn} are drawn, {num_kept} kept"
        )
    others, drawn = num - 1, num_drawn - 1
    ways = sum(
        math.comb(num_better, better) * math.comb(others - num_better, drawn - better)
        for better in range(min(num_kept, num_better + 1, drawn + 1))
    )
    return num_drawn / num * (ways / math.comb(others, drawn))
