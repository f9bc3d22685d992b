"""What other settings would have kept: the run's own, exactly; fewer rollouts, as all choices of them do."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from rs_aligner.config import TrainRSConfig
from rs_aligner.config.changes import settings_of
from rs_aligner.record.attempts import Attempt
from rs_aligner.record.ledger_row import groups_of
from rs_aligner.report.alternative import alternative
from rs_aligner.report.replay import recorded, replay
from rs_aligner.report.run_data import RunData, open_run
from rs_aligner.report.tally import Ratio, expected
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Progress, build_chain
from tests import fake_run
from tests.command import status_of
from tests.fake_run import FakeRun, Result, digest

CHAINS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "bar and best": [{"name": "threshold", "at_least": 6.0}, {"name": "topk", "k": 2}],
    "percentile": [{"name": "percentile", "start": 0.2, "end": 0.8, "over": "run"}],
    "of the step": [{"name": "top_fraction", "fraction": 0.3}],
    "with a memory": [{"name": "duplicates", "against": "both"}, {"name": "median"}],
    "two judges": [{"name": "pessimistic", "components": ["style", "length"], "k": 2}],
    "an unsure judge": [{"name": "pessimistic", "disagreement": "length", "coefficient": 0.5}],
}


def made(folder: Path, *, steps: int = 3, prompts: int = 6, seed: str = "", **rs: Any) -> RunData:
    """A run with a fake policy, and the file of its start, which a fake run has not."""

    def salted(*parts: Any) -> str:
        return digest(seed, *parts)

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        value = int(digest(rollout.text)[:6], 16) / 1e6
        if value < 1:
            return ScoreFailure("no idea")
        hardness = int(digest(prompt.text)[:4], 16) / 7e3
        return Score(value + hardness, {"style": 17 - value, "length": float(len(rollout.token_ids))})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_run, "digest", salted)
        run = FakeRun(folder)
        run.prompts = [Prompt(f"p{i}", f"text {i}", (100 + i,), row=i) for i in range(prompts)]
        run.start(score, steps=steps, interval=None, epochs=50, text_length=3, watched=score, **rs)
    rs.pop("scored", None)
    config = TrainRSConfig.model_validate(
        {
            "exp_manager": {"explicit_log_dir": str(folder)},
            "pretrained_checkpoint": {"restore_from_path": "unused"},
            "remote_rm": {},
            "model": {
                "data": {"data_prefix": {"train": "unused"}},
                "rs": {"num_rollout_samples": 4, "num_rollouts_per_prompt": 4, **rs},
            },
        }
    )
    Attempt(settings_of(config), {}, planned={"steps": steps}, number=1).write(folder / "config")
    return open_run(folder)


@pytest.mark.parametrize("chain", CHAINS)
def test_the_run_s_own_settings_keep_what_it_kept(chain: str, tmp_path: Path) -> None:
    run = made(tmp_path, num_rollouts_per_prompt=6, selection=CHAINS[chain])
    for steps in ([1, 2, 3], [3]):  # of one alone, selectors remember those before
        (found,) = replay(run, steps, [alternative(run)])
        there = recorded(run, steps)
        assert (found.kept, found.seen, found.num_rollouts) == (there.kept, there.seen, 6)
        assert found.reward.value == pytest.approx(there.reward.value, rel=1e-12)
        reasons = {reason: number for reason, number in found.reasons.items() if number}
        assert reasons == there.reasons
    metrics = run.metrics()[-1]
    (last,) = replay(run, [3], [alternative(run)])
    assert last.reward.value == pytest.approx(metrics["reward/kept_mean"])
    assert last.chance.value == pytest.approx(metrics["control/random_mean"])
    assert last.best.value == pytest.approx(metrics["reward/best_of_n"])


@pytest.mark.parametrize(
    "more",
    [
        {"pool": {"improve_steps": 2}},
        {"pool": {"restart": True, "improve_steps": 2}},
        {"until": {"accepted": 1, "at_least": 9.0, "max_rollouts": 12}},
    ],
    ids=["improved twice", "restarted", "until"],
)
def test_however_a_run_samples_its_own_settings_keep_what_it_kept(
    more: dict[str, Any], tmp_path: Path
) -> None:
    run = made(tmp_path, steps=4, **more)
    for steps in ([1, 2, 3, 4], [3]):
        (found,) = replay(run, steps, [alternative(run)])
        there = recorded(run, steps)
        assert 0 < found.kept == there.kept
        assert (found.seen, found.num_rollouts) == (there.seen, there.num_rollouts)
        assert found.reward.value == pytest.approx(there.reward.value, rel=1e-12)


def test_of_a_run_with_a_bank_each_step_is_seen_by_itself_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, steps=4, pool={"max_staleness": 2})
    (found,) = replay(run, [1, 2, 3, 4], [alternative(run)])
    assert found.kept == len(
        {
            (row.step, row.group)
            for step in run.steps()
            for row in run.rows(step)
            if row.policy_version == step - 1
        }
    )
    assert recorded(run, [1, 2, 3, 4]).kept < found.kept  # older ones were better
    assert status_of(["replay", str(tmp_path), "--top-n", "2"]) == 0
    assert "in the 2 steps before" in capsys.readouterr().err


@pytest.mark.parametrize("chain", ["plain", "bar and best"])
def test_fewer_rollouts_are_the_mean_over_all_choices_of_them(chain: str) -> None:
    scores: list[Score | ScoreFailure] = [Score(value) for value in (7.0, 3.0, 9.0, 9.0, 6.5, 1.0)]
    scores[5] = ScoreFailure("no idea")
    prompt = Prompt("p", "text", (1,))
    rollouts = [Rollout(0, index, (1,), str(index), "stop") for index in range(len(scores))]
    group = Group(prompt, rollouts, scores)
    top, bar = (1, -1.0) if chain == "plain" else (2, 6.0)
    eligible = [
        place for place, score in enumerate(scores) if isinstance(score, Score) and score.reward >= bar
    ]
    for drawn in range(1, 7):
        sums, numbers = [], []
        for places in combinations(range(6), drawn):
            part = group.only(places)
            configs = TrainRSConfig.model_validate(
                {
                    "exp_manager": {"explicit_log_dir": "unused"},
                    "pretrained_checkpoint": {"restore_from_path": "unused"},
                    "remote_rm": {},
                    "model": {
                        "data": {"data_prefix": {"train": "unused"}},
                        "rs": {"selection": CHAINS[chain]},
                    },
                }
            ).model.rs.selection
            selection = build_chain(configs, top_n=1).select([part], Progress(1, 1))
            kept = [one.scores[place] for one, place in selection.kept([part])]
            sums.append(sum(score.reward for score in kept if isinstance(score, Score)))
            numbers.append(len(kept))
        found = expected(group, group, eligible, drawn, top)
        assert found.reward == pytest.approx(fmean(sums), rel=1e-12)
        assert found.kept == pytest.approx(fmean(numbers), rel=1e-12)


def test_a_chain_that_looks_at_others_is_shown_parts_by_index(tmp_path: Path) -> None:
    run = made(tmp_path, steps=1, num_rollouts_per_prompt=6)
    median = alternative(run, selection=[{"name": "median"}], rollouts=3)
    (found,) = replay(run, [1], [median])
    rows = list(run.rows(1))
    kept = []
    for group in range(4):
        for part in (0, 3):
            mine = [row.reward for row in rows if row.group == group and part <= row.index < part + 3]
            rewards = sorted(reward for reward in mine if reward is not None)
            kept += [reward / 2 for reward in rewards if reward > rewards[(len(rewards) - 1) // 2]]
    assert found.how == "2 parts of 3"
    assert found.kept == len(kept) / 2
    assert found.reward.value == pytest.approx(2 * fmean(kept))


def test_rollouts_that_were_read_are_chosen_from_too(tmp_path: Path) -> None:
    scored = groups_of(list(made(tmp_path / "sampled", steps=1).rows(1)))
    run = made(tmp_path / "read", steps=2, scored=scored, offline=["sampled"])
    assert run.steps() == [1, 2]
    (found,) = replay(run, [2], [alternative(run)])
    assert found.seen == recorded(run, [2]).seen == 16
    assert found.reward.value == pytest.approx(run.metrics()[-1]["reward/kept_mean"])


def test_a_part_of_the_score_selects_in_place_of_the_score(tmp_path: Path) -> None:
    run = made(tmp_path, steps=1)
    rows = [row for row in run.rows(1) if row.reward is not None]
    by_style, by_watched = replay(
        run, [1], [alternative(run, component="style"), alternative(run, component="watched")]
    )
    best = [
        max((row for row in rows if row.group == group), key=lambda row: row.components["style"])
        for group in range(4)
    ]
    assert by_style.reward.value == pytest.approx(fmean(row.reward or 0 for row in best))
    assert by_style.selected.value == pytest.approx(fmean(row.components["style"] for row in best))
    assert (by_style.gain.value or 0) < 0 < (by_watched.gain.value or 0)
    with pytest.raises(ValueError, match="--component nope: a score has no such part, but style, length"):
        replay(run, [1], [alternative(run, component="nope")])


def test_the_error_of_a_ratio_is_that_of_a_mean_where_all_count_alike() -> None:
    values, ratio = [0.3, 0.9, 0.1, 0.4], Ratio()
    for value in values:
        ratio.add(2 * value, 2)
    assert ratio.value == pytest.approx(fmean(values))
    assert ratio.error == pytest.approx(stdev(values) / 2)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_what_runs_with_another_seed_keep_is_predicted_within_a_tenth(tmp_path: Path) -> None:
    """The small form of benchmarks/replay.py, whose runs are real."""
    size = {"prompts": 300, "steps": 1, "num_rollout_samples": 300}
    ledger = made(tmp_path / "ledger", seed="one", num_rollouts_per_prompt=8, **size)
    settings: list[dict[str, Any]] = [{"rollouts": 2}, {"rollouts": 4}]
    settings += [{"selection": chain} for name, chain in CHAINS.items() if name != "plain"]
    predictions = replay(ledger, [1], [alternative(ledger, **one) for one in settings])
    assert len({round(one.reward.value or 0, 1) for one in predictions}) > 3  # there is something to tell
    for number, (one, predicted) in enumerate(zip(settings, predictions, strict=True)):
        rs = {
            "num_rollouts_per_prompt": one.get("rollouts", 8),
            "selection": one.get("selection", []),
        }
        real = recorded(made(tmp_path / str(number), seed="two", **size, **rs), [1])
        assert real.reward.value is not None
        assert real.reward.error is not None
        assert 0.1 * real.reward.value > 4 * real.reward.error  # chance does not decide
        assert predicted.reward.value == pytest.approx(real.reward.value, rel=0.1)
        assert predicted.gain.value == pytest.approx(real.gain.value, rel=0.25)


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, steps=2)
    command = ["replay", str(tmp_path), "--rollouts", "2", "--selection", "[{name: positive}, {name: topk}]"]
    assert status_of([*command, "--selection", "[{name: median}]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(", steps 1 to 2: 6 prompts, 24 rollouts")
    starts = ["as it was", "scored above 0, then the best 1", "above the prompt's median"]
    assert [line.partition("  ")[0] for line in lines[2:5]] == starts
    assert lines[5] == "Behind step 1 the policy is the one that the run's own selection has trained."
    assert status_of([*command, "--json", "--step", "1"]) == 0
    as_it_was, other = json.loads(capsys.readouterr().out)
    assert as_it_was["reward"] == pytest.approx(run.metrics()[0]["reward/kept_mean"])
    assert other["from"] == "all choices of 2 of 4"
    for wrong, told in (
        (["--rollouts", "9"], "--rollouts 9: step 1 has 4 rollouts of a prompt by design"),
        (["--selection", "[{name: best}]"], 'model.rs.selection.0.name is "best"'),
        (["--selection", "{a"], "--selection {a: while parsing"),
        (["--selection", "[{name: median}]", "--bar", "1"], "--bar is the bar of the plain recipe"),
        (["--step", "7"], "--step 7: the ledger has steps 1 to 2"),
        (["--top-n", "0"], "model.rs.top_n_rollouts is 0"),
    ):
        assert status_of(["replay", str(tmp_path), *wrong]) == 2
        assert told in capsys.readouterr().err
