"""What a start takes back of earlier ones, and what it does not: never what it would not come to itself."""

from __future__ import annotations

import errno
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.record.ledger_line import to_line
from rs_aligner.record.open_step import OpenStep
from rs_aligner.record.run import Run
from rs_aligner.rollout import Prompt, Rollout, ScoreFailure
from tests.fake_run import FakeJudge, FakeRun, Killed, Result, by_tokens, figures
from tests.trainers.test_pool import scored_groups

HOW: dict[str, Any] = {"steps": 5, "interval": None, "save_interval": 99, "top_n_rollouts": 2}


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "run")


@pytest.fixture
def other(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "other")


def die_in(run: FakeRun, step: int, **how: Any) -> None:
    """Train until this step is to be trained: it is written down, and its figures are not."""
    left = step

    def die() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run.start(before_train=die, **HOW | how)
    run.judges.clear()


def scored(run: FakeRun) -> Counter[int]:
    """How many rollouts were scored since the last death, by the step that sampled them."""
    found: Counter[int] = Counter()
    for judge in run.judges:
        for (_, version, _), times in judge.scored.items():
            found[version + 1] += times
    return found


def assert_same_end(run: FakeRun, other: FakeRun) -> None:
    assert (run.folder / "final" / "weights").read_text() == (other.folder / "final" / "weights").read_text()
    steps = other.ledger.steps()
    assert [run.ledger.read(step) for step in run.ledger.steps()] == [other.ledger.read(s) for s in steps]
    assert figures(run.rows) == figures(other.rows)


def step_file(run: FakeRun, step: int) -> Path:
    return run.folder / "rollouts" / f"step_{step:06d}.jsonl"


def rewrite(path: Path, run: FakeRun, step: int, **changed: Any) -> None:
    path.write_bytes(b"".join(to_line(replace(row, **changed)) for row in run.ledger.read(step)))


def test_steps_of_the_ledger_are_trained_again_and_keep_their_rows(
    run: FakeRun, other: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    die_in(run, 4)
    rows = (run.folder / "metrics.jsonl").read_bytes()
    told = len(run.logger.rows)
    with caplog.at_level("INFO", "rs_aligner"):
        run.start(**HOW)
    other.start(**HOW)
    assert_same_end(run, other)
    assert set(scored(run)) == {5}
    assert (run.folder / "metrics.jsonl").read_bytes().startswith(rows)  # times included
    assert [step for step, _ in run.logger.rows[told:]] == [4, 5]
    assert "steps 1 to 4 are trained again from the ledger" in caplog.text


@pytest.mark.parametrize("spoilt", [1, 3])
def test_a_broken_step_is_set_aside_and_made_anew_and_so_is_what_is_behind_it(
    run: FakeRun, other: FakeRun, caplog: pytest.LogCaptureFixture, spoilt: int
) -> None:
    die_in(run, 4)
    path = step_file(run, spoilt)
    path.write_bytes(path.read_bytes()[:-1000] + b"\n")
    run.start(**HOW)
    other.start(**HOW)
    assert_same_end(run, other)
    assert set(scored(run)) == set(range(spoilt, 6))
    assert f"step_{spoilt:06d}.jsonl:" in caplog.text
    assert f"set aside as step_{spoilt:06d}.jsonl.broken, and made anew" in caplog.text
    assert path.with_name(path.name + ".broken").exists()


def test_what_a_bank_needs_of_a_broken_file_stops_the_run_which_names_it(run: FakeRun) -> None:
    how = {**HOW, "pool": {"max_staleness": 2}}
    run.start(**{**how, "steps": 2})
    path = step_file(run, 2)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"kept":true', b'"kept":null', 1))
    with pytest.raises(ValueError, match=r"step_000002\.jsonl:\d+: .*checksum"):
        run.start(**how)
    path.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])  # short of its last line
    with pytest.raises(ValueError, match=r"step_000002\.jsonl:\d+: missing"):
        run.start(**how)


def test_rows_of_other_settings_are_not_taken(run: FakeRun, other: FakeRun) -> None:
    die_in(run, 3)
    rewrite(step_file(run, 2), run, 2, made_by="other settings")
    run.start(**HOW)
    other.start(**HOW)
    assert_same_end(run, other)
    assert set(scored(run)) == {2, 3, 4, 5}


def test_rows_of_other_prompts_seeds_or_versions_are_not_taken(run: FakeRun, other: FakeRun) -> None:
    """And the rows of metrics of such steps are not left either."""
    for field, value in (("prompt_token_ids", (1,)), ("seed", 1), ("policy_version", 7)):
        die_in(run, 3)
        rewrite(step_file(run, 2), run, 2, **{field: value})
        run.start(**HOW)
        assert set(scored(run)) == {2, 3, 4, 5}, field
        other.start(**HOW)
        assert_same_end(run, other)
        for one in (run, other):
            one.folder = one.folder.with_name(one.folder.name + "_")


def test_another_selection_stops_the_run_and_says_by_what(run: FakeRun) -> None:
    die_in(run, 3)
    with pytest.raises(
        ValueError, match=r"step_000001\.jsonl:\d+ says of rollout \d of prompt p\d: 'kept'"
    ) as e:
        run.start(**{**HOW, "top_n_rollouts": 1})
    assert "the selection now says 'not in the top n'" in str(e.value)
    assert "Step 1 was trained on that" in str(e.value)


@pytest.mark.parametrize("replicas", [1, 2])
def test_another_selection_is_made_where_that_is_allowed_of_what_is_scored(
    run: FakeRun, other: FakeRun, monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    die_in(run, 3)
    monkeypatch.setattr(Run, "selects_anew", True)
    how = {**HOW, "top_n_rollouts": 1, "replicas": replicas}
    run.start(**how)
    other.start(**how)
    assert_same_end(run, other)
    assert set(scored(run)) == {2, 3, 4, 5}


def test_failed_rows_of_a_step_that_was_not_trained_are_asked_again_and_its_scored_ones_are_not(
    run: FakeRun, other: FakeRun
) -> None:
    def broken(prompt: Prompt, rollout: Rollout) -> Result:
        fails = rollout.policy_version == 1 and rollout.index
        return ScoreFailure("refused") if fails else by_tokens(prompt, rollout)

    with pytest.raises(RuntimeError, match="rollouts have no score"):
        run.start(broken, **HOW)
    run.judges.clear()
    run.start(**HOW)
    other.start(**HOW)
    assert_same_end(run, other)
    assert scored(run)[2] == 6  # two prompts, three of four rollouts


def test_failures_of_a_step_that_was_trained_belong_to_it(run: FakeRun, other: FakeRun) -> None:
    def once(prompt: Prompt, rollout: Rollout) -> Result:
        return ScoreFailure("refused") if rollout.index == 3 else by_tokens(prompt, rollout)

    die_in(run, 3, score=once)
    run.start(**HOW)
    assert set(scored(run)) == {4, 5}
    assert {row.failure for row in run.ledger.read(3) if row.index == 3} == {"refused"}


class Slow(FakeJudge):
    """Leaves one rollout unanswered until all others are there, and then dies."""

    held: Future[Result] | None = None

    def submit(self, prompt: Prompt, rollout: Rollout) -> Future[Result]:
        future = super().submit(prompt, rollout)
        if self.held is None:
            self.held, self.waiting = future, []
        self._answer()
        return future

    def flush(self) -> None:
        raise RuntimeError("killed")


def test_a_slow_answer_holds_back_nothing_that_was_scored_before(run: FakeRun, other: FakeRun) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        # Stand-ins.
        run.start(judge=lambda _: Slow(by_tokens, run.events, 0.0), **HOW)  # type: ignore[arg-type,return-value]  # a stand-in
    run.start(**HOW)
    other.start(**HOW)
    assert_same_end(run, other)
    assert scored(run)[1] == 1


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 2)])
def test_another_number_of_replicas_takes_back_what_there_is(
    run: FakeRun, other: FakeRun, before: int, after: int
) -> None:
    """One of them dies in the third step, whose first replicas have rows in the folder."""

    def score(prompt: Prompt, rollout: Rollout) -> Result:
        if rollout.policy_version == 2 and rollout.index == 0 and prompt.id != "p1":
            raise Killed
        return by_tokens(prompt, rollout)

    with pytest.raises(Killed):
        run.start(score, replicas=before, answers_by=1, **HOW)
    written = sum(len(path.read_bytes().splitlines()) for path in run.folder.glob("rollouts/*.open/*"))
    assert written
    run.judges.clear()
    run.start(replicas=after, **HOW)
    other.start(**HOW)
    assert_same_end(run, other)
    assert scored(run)[3] == 16 - written


def test_an_offline_run_is_trained_again_without_a_judge(run: FakeRun, other: FakeRun) -> None:
    how = {"scored": scored_groups(6), "offline": ["unused"]}
    die_in(run, 3, **how)
    run.start(**HOW | how)
    other.start(**HOW | how)
    assert_same_end(run, other)
    assert run.rows[0]["tokens/generated"] == 0


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_full_disk_ends_all_ranks_with_its_reason(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    def full(self: OpenStep, line: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(OpenStep, "_write", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        run.start(replicas=replicas, **HOW)
    assert error.value.errno == errno.ENOSPC
    assert str(error.value.filename).endswith("replica_00.jsonl")
    assert len(run.errors) == replicas


def test_what_is_left_of_held_out_prompts_is_not_asked_again(run: FakeRun, other: FakeRun) -> None:
    def score(prompt: Prompt, rollout: Rollout) -> Result:
        if prompt.id == "v3" and rollout.policy_version == 2:
            raise Killed
        return by_tokens(prompt, rollout)

    how = {**HOW, "interval": 2, "answers_by": 1}
    with pytest.raises(Killed):
        run.start(score, **how)
    run.judges.clear()
    run.start(**how)
    other.start(**how)
    assert_same_end(run, other)
    shown = [shown for judge in run.judges for shown in judge.scored if shown[0].startswith("v")]
    assert Counter(version for _, version, _ in shown) == {2: 1, 4: 4, 5: 4}
    names = sorted(path.name for path in run.folder.glob("rollouts/held*"))
    assert names == [f"held_out_{step:06d}.jsonl" for step in (0, 2, 4, 5)]
