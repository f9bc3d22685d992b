"""What is summed up of the ledger: the same whether read at once or bit by bit, and never what is gone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.report import sums as module
from rs_aligner.report.histogram import MOST_BINS, MOST_VALUES, Histogram, common_exponent
from rs_aligner.report.run_data import RunData, open_run
from rs_aligner.report.sums import Sums, pass_class, summed
from tests.report.made_up import add_look, add_step, group, write_run

NUMBERS = st.floats(-1e9, 1e9) | st.integers(-3, 3).map(float) | st.floats(0, 1, width=16)


def histogram(values: list[float]) -> Histogram:
    found = Histogram()
    for value in values:
        found.add(value)
    return found


@given(st.lists(NUMBERS, min_size=1, max_size=200))
def test_a_histogram_loses_no_value_and_stays_small(values: list[float]) -> None:
    found = histogram(values)
    bars = list(found.bars(found.exponent))
    assert sum(bar.count for bar in bars) == len(values) == found.number
    assert len(found.values) <= MOST_VALUES
    assert len(bars) <= max(MOST_BINS, MOST_VALUES)
    for bar in bars:
        inside = [v for v in values if (v == bar.low if bar.low == bar.high else bar.low <= v < bar.high)]
        assert len(inside) == bar.count
    assert found.mean == pytest.approx(sum(values) / len(values))


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.lists(NUMBERS, min_size=1, max_size=60))
def test_two_histograms_are_shown_in_the_same_bins(one: list[float], other: list[float]) -> None:
    pair = histogram(one), histogram(other)
    exponent = common_exponent(*pair)
    for found in pair:
        bars = list(found.bars(exponent))
        assert sum(bar.count for bar in bars) == found.number
        assert len({bar.high - bar.low for bar in bars}) == 1


@pytest.mark.parametrize(
    ("passed", "number", "place"),
    [(0, 8, 0), (1, 8, 2), (1, 10, 1), (4, 8, 5), (7, 8, 9), (19, 20, 10), (8, 8, 11), (1, 1, 11)],
)
def test_pass_rates_have_none_and_all_apart(passed: int, number: int, place: int) -> None:
    assert pass_class(passed, number) == place


@pytest.fixture
def run(tmp_path: Path) -> RunData:
    folder = write_run(tmp_path / "run")
    add_look(folder, 0, [group(0, [0.0, 0.5], name="v0", step=1), group(1, ["down", 1.0], name="v1", step=1)])
    add_step(folder, 1, [group(0, [0.0, 1.0], lengths=[3, 5]), group(1, [0.0, 0.0, "down"])], [[1], []])
    # A bank: the answer of step 1 is trained on again.
    old = group(2, [1.0], name="p0", version=0)
    add_step(folder, 2, [group(0, [1.0, 1.0], step=2, name="p5"), old], [[0, 1], [0]])
    add_look(folder, 2, [group(0, [1.0], name="v0", step=3), group(1, [0.5], name="v1", step=3)])
    return open_run(folder)


def test_every_rollout_is_counted_once_in_the_step_that_sampled_it(run: RunData) -> None:
    found = summed(run)
    assert (found.rollouts, found.failed, found.held_out, found.watched) == (7, 1, 6, 0)
    assert found.tokens == 3 + 5 + 5 * 2
    assert found.scores.values == {0.0: 3, 1.0: 3}
    assert found.kept_scores.values == {1.0: 4}  # the bank's once more
    assert found.lengths.values == {2.0: 5, 3.0: 1, 5.0: 1}
    assert found.tries == {2: 2, 3: 1}
    assert found.pass_rates == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert Counter((point.score, point.kept) for point in found.points) == {
        (0.0, False): 3,
        (1.0, True): 3,
    }
    assert [(one.id, one.step, one.mean, one.best) for one in found.hardest] == [
        ("p1", 1, 0.0, 0.0),
        ("p0", 1, 0.5, 1.0),
        ("p5", 2, 1.0, 1.0),
    ]
    assert [one.id for one in found.easiest] == ["p5", "p0", "p1"]
    assert found.first is not None
    assert found.last is not None
    assert [(one.id, one.mean) for one in found.first.prompts] == [("v0", 0.25), ("v1", 1.0)]
    assert [(one.id, one.mean) for one in found.last.prompts] == [("v0", 1.0), ("v1", 0.5)]


def test_a_bar_for_passing_other_than_zero_counts(run: RunData) -> None:
    assert summed(run, passed_above=1.0).pass_rates[0] == 3
    assert summed(run).pass_rates[0] == 1  # what was summed up for another bar is not used


def test_steps_are_read_once_and_come_to_the_same(run: RunData, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    rows_as = RunData.rows_as

    def noted(self: RunData, name: str, decoder):
        read.append(name)
        return rows_as(self, name, decoder)

    monkeypatch.setattr(RunData, "rows_as", noted)
    summed(run)
    add_step(run.folder, 3, [group(0, [0.5, 0.25], step=3, name="p9")], [[0]])
    later = summed(run)
    assert read == ["held_out_000000", "step_000001", "step_000002", "held_out_000002", "step_000003"]
    (run.folder / "report" / "sums.json").unlink()
    assert later == summed(run)


def test_a_step_that_is_made_anew_or_taken_back_leaves_nothing(run: RunData) -> None:
    assert summed(run).kept_scores.values == {1.0: 4}
    add_step(run.folder, 2, [group(0, [0.75, 0.5], step=2, name="p5")], [[0]])
    assert summed(run).kept_scores.values == {0.75: 1, 1.0: 1}
    (run.folder / "rollouts" / "step_000002.jsonl").unlink()
    assert summed(run).kept_scores.values == {1.0: 1}
    assert summed(run).rollouts == 5


def test_sums_that_cannot_be_read_are_made_anew(run: RunData) -> None:
    whole = summed(run)
    file = run.folder / "report" / "sums.json"
    file.write_bytes(file.read_bytes()[:50])
    assert summed(run) == whole
    assert json.loads(file.read_bytes())["rollouts"] == 7


def test_a_damaged_file_is_told_and_the_others_are_counted(run: RunData) -> None:
    path = run.folder / "rollouts" / "step_000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"answer 1", b"answer 9", 1))
    found = summed(run)
    assert found.rollouts == 2
    assert len(found.damaged) == 1
    assert f"{path}:2" in found.damaged[0]


def test_the_points_are_a_sample_of_all_that_does_not_depend_on_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_POINTS", 50)
    folder = write_run(tmp_path / "run")
    for step in (1, 2, 3, 4):
        groups = [group(place, [step + place / 100] * 5, step=step) for place in range(20)]
        add_step(folder, step, groups, [[0]] * 20)
    points = summed(open_run(folder)).points
    assert len(points) == 50
    of_steps = Counter(int(point.score) for point in points)
    assert min(of_steps.values()) >= 5  # 12.5 are expected of each; fewer than 5 happens once in 300
    ranks = [point.rank for point in points]
    assert ranks == sorted(ranks)


def test_pairs_on_which_the_judges_disagree_most_come_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    agree = group(0, [(0.0, 10.0), (1.0, 20.0)])
    much = group(2, [(1.0, 10.0), (0.0, 20.0)])
    add_step(folder, 1, [agree, much, group(3, [(0.4, 16.0), (0.5, 14.0)])], [[1], [0], [0]])
    found = summed(open_run(folder)).disagreements
    assert [one.prompt_id for one in found.largest] == ["p2", "p3"]
    first = found.largest[0]
    assert (first.first, first.judged_first, first.watched_first) == ("answer 0", 1.0, 10.0)
    assert (first.second, first.judged_second, first.watched_second) == ("answer 1", 0.0, 20.0)
    assert found.compared == 3


def test_a_run_without_rollouts_has_empty_sums(tmp_path: Path) -> None:
    found = summed(open_run(write_run(tmp_path / "run")))
    assert found == Sums(found.made_for)
