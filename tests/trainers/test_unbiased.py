"""Figures against the truth: where the docs call one unbiased, its mean over many steps is the known number.

Each prompt has a pass rate that is known, rewards are coins of that rate, and steps are drawn by the pool and
the collector as in a run: under `until`, with a bank, with both, and plainly.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from statistics import fmean, stdev
from typing import Any

import pytest

from rs_aligner.config import TrainRSConfig
from rs_aligner.data import DataOrder
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import groups_of
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.selection import Chain, Progress, Selection, build_chain
from rs_aligner.selection.bars import TopFraction
from rs_aligner.selection.base import GroupSelector, Places
from rs_aligner.trainers.collect import Collector
from rs_aligner.trainers.measure import measure
from rs_aligner.trainers.pool import Candidates, Pool, SampledRollouts
from rs_aligner.trainers.round import Judges

STEPS = 250


class Coins:
    """A policy and a judge in one: an answer is a coin, and so is its score, with the prompt's pass rate."""

    weights_seconds = 0.0

    def __init__(self, rates: Sequence[float], seed: int) -> None:
        self.rates, self.random, self.version = rates, random.Random(seed), 0

    def generate(self, request: SampleRequest) -> Iterator[Rollout]:
        for group, prompt in enumerate(request.prompts):
            for index in request.indices:
                # One that passes is short and likely, so that length and entropy follow the score.
                passes = self.random.random() < self.rates[prompt.row]
                tokens, each = ((7,), -0.5) if passes else ((7, 8, 9), -1.5)
                text, seed = str(int(passes)), self.random.getrandbits(60)
                log_probs = (each,) * len(tokens)
                yield Rollout(group, index, tokens, text, "stop", self.version, seed, log_probs)

    def gather(self, item: Any) -> list[Any]:
        return [item]

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Score | ScoreFailure]:
        future: Future[Score | ScoreFailure] = Future()
        future.set_result(Score(float(rollout.text)))
        return future

    def flush(self) -> None: ...


class Blind(GroupSelector):
    """Keeps one of each group, whatever it scored."""

    reason = "bad luck"

    def __init__(self) -> None:
        self.random = random.Random(5)

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        return [self.random.choice(list(left))]


def simulate(
    rates: Sequence[float], chain: Chain | None = None, steps: int = STEPS, **rs: Any
) -> Iterator[tuple[Candidates, Selection, dict[str, float]]]:
    """Steps of a run that learns nothing: its candidates, who is kept, and its figures."""
    config = TrainRSConfig.model_validate(
        {
            "exp_manager": {"explicit_log_dir": "unused"},
            "pretrained_checkpoint": {"restore_from_path": "unused"},
            "model": {
                "data": {"data_prefix": {"train": "unused"}},
                "rs": {"num_rollout_samples": len(rates), "num_rollouts_per_prompt": 4, **rs},
            },
        }
    )
    coins: Any = Coins(rates, seed=11)
    prompts = [Prompt(f"p{i}", f"text {i}", (i,)) for i in range(len(rates))]
    source = SampledRollouts(
        config.model.rs,
        Collector(config, coins, Judges(coins)),
        prompts,
        DataOrder(len(prompts), len(prompts), seed=3),
    )
    pool = Pool(config.model.rs.pool, source)
    chain = chain or build_chain([], top_n=config.model.rs.top_n_rollouts)
    for step in range(1, steps + 1):
        candidates = pool.draw(step)
        selection = chain.select(candidates.groups, Progress(step, steps))
        pool.settle(candidates.groups, selection)
        coins.version = step
        yield candidates, selection, measure(candidates, selection, passed_above=0.5)


def means(figures: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard error of each key, over the steps that have it."""
    columns: defaultdict[str, list[float]] = defaultdict(list)
    for row in figures:
        for key, value in row.items():
            columns[key].append(value)
    return {
        key: (fmean(col), stdev(col) / math.sqrt(len(col))) for key, col in columns.items() if len(col) > 1
    }


def truth(rates: Sequence[float], num: int) -> dict[str, float]:
    """What the figures estimate, for coins of these rates and `num` tosses of each."""
    none = [(1 - rate) ** num for rate in rates]
    known = {
        "reward/mean": fmean(rates),
        "reward/best_of_n": 1 - fmean(none),
        "groups/none_passed": fmean(none),
        "groups/all_passed": fmean(rate**num for rate in rates),
        "response_length/mean": 3 - 2 * fmean(rates),
    }
    for k in range(1, num + 1):
        known[f"best_of/{k}"] = 1 - fmean((1 - rate) ** k for rate in rates)
    for k in (1, 2, 4):
        if k <= num:
            known[f"pass_at/{k}"] = known[f"best_of/{k}"]
    return known


MIXED = (0.05, 0.2, 0.5, 0.9)
UNTIL = {"accepted": 1, "at_least": 1, "max_rollouts": 40}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rates", "num", "rs"),
    [
        pytest.param((0.1,) * 6, 1, {"until": UNTIL}, marks=pytest.mark.slow),
        ((0.1,) * 6, 3, {"until": {**UNTIL, "accepted": 3}}),
        pytest.param(
            MIXED,
            4,
            {"until": {**UNTIL, "rollouts_a_round": 4}, "num_rollouts_per_prompt": 8},
            marks=pytest.mark.slow,
        ),
        pytest.param((0.3,) * 6, 4, {"pool": {"max_staleness": 4}}, marks=pytest.mark.slow),
        (MIXED, 4, {"pool": {"max_staleness": 4}}),
        (MIXED, 2, {"until": {**UNTIL, "rollouts_a_round": 2}, "pool": {"max_staleness": 2}}),
        (MIXED, 4, {}),
    ],
)
def test_the_mean_of_an_estimate_is_the_truth(rates: Sequence[float], num: int, rs: dict[str, Any]) -> None:
    figures = [row for *_, row in simulate(rates, **rs)]
    found = means(figures)
    for key, known in truth(rates, num).items():
        mean, error = found[key]
        assert abs(mean - known) < 4.5 * error + 1e-12, (key, mean, known, error)
    assert not any(key in found for key in (f"best_of/{num + 1}", f"pass_at/{2 * num}", f"pass_at/{num + 1}"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rs",
    [
        pytest.param({"until": {**UNTIL, "rollouts_a_round": 3}}, marks=pytest.mark.slow),
        pytest.param({"pool": {"max_staleness": 3}}, marks=pytest.mark.slow),
        {"until": {**UNTIL, "rollouts_a_round": 3}, "pool": {"max_staleness": 3}},
    ],
)
def test_a_selection_that_does_not_look_is_no_better_than_chance(rs: dict[str, Any]) -> None:
    """Kept against the random control, over prompts of different difficulty."""
    gains, lengths = [], []
    for *_, row in simulate(MIXED, Chain([Blind()]), **rs):
        if "control/random_mean" in row:
            gains.append(row.get("control/z", 0.0) * row["control/random_std"])
            lengths.append(row["reward/headroom"])
    assert len(gains) > STEPS / 2
    assert abs(fmean(gains)) < 4 * stdev(gains) / math.sqrt(len(gains))
    assert min(lengths) >= 0


def test_counts_are_of_all_that_there_was() -> None:
    for candidates, _, row in simulate(MIXED, steps=20, until=UNTIL, pool={"max_staleness": 3}):
        everyone = [rollout for group in candidates.groups for rollout in group.rollouts]
        assert row["rollouts/total"] == row["rollouts/scored"] == len(everyone)
        rejected = sum(value for key, value in row.items() if key.startswith("rejected/"))
        assert row["rollouts/kept"] + rejected == len(everyone)
        assert "kl/best_of_n" not in row or all(r.by_design for r in everyone)
        assert sum(map(len, candidates.by_design())) == len(MIXED)


def test_without_until_or_bank_every_rollout_counts() -> None:
    for candidates, _, row in simulate(MIXED, steps=3):
        assert [len(places) for places in candidates.by_design()] == [4] * len(MIXED)
        assert "kl/best_of_n" in row


@pytest.mark.parametrize("chain", [None, Chain([TopFraction(0.25)])], ids=["of a prompt", "of the step"])
def test_ties_go_to_what_is_fresh(chain: Chain | None) -> None:
    """A coin that always passes: nothing of a bank is better than what is new."""
    steps = simulate((1.0,) * 4, chain, 6, pool={"max_staleness": 3}, top_n_rollouts=3)
    for step, (candidates, selection, _) in enumerate(steps, start=1):
        kept = [group.rollouts[place].policy_version for group, place in selection.kept(candidates.groups)]
        everyone = {rollout.policy_version for group in candidates.groups for rollout in group.rollouts}
        assert set(kept) == {step - 1}
        assert everyone == ({step - 2, step - 1} if step > 1 else {0})


def test_what_was_sampled_by_design_is_known_after_reading_back(tmp_path: Any) -> None:
    ((candidates, selection, first),) = simulate(MIXED, steps=1, until=UNTIL)
    ledger = Ledger(tmp_path)
    ledger.append(1, candidates.groups, selection)
    read = groups_of(ledger.read(1))
    assert [[r.by_design for r in g.rollouts] for g in read] == [
        [r.index < 1 for r in g.rollouts] for g in candidates.groups
    ]
    assert any(not row.by_design for row in ledger.read(1))
    assert measure(Candidates(read, 0, 0), selection, passed_above=0.5) == first
