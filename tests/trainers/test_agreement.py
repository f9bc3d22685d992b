"""Ranks that come to different selections stop before they train, and say by what they differ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.record import marker
from rs_aligner.rollout import Group, Prompt, Rollout, Score, TrainingRow
from rs_aligner.selection import Chain, Progress, Selection
from rs_aligner.selection.bars import Threshold, TopK
from rs_aligner.selection.base import GroupSelector, Places
from rs_aligner.trainers.agreement import (
    check_folder,
    check_inputs,
    check_step,
    digest,
    digest_of_prompts,
    digest_of_rows,
)
from rs_aligner.trainers.failures import RanksDiffer
from tests.fake_run import Exchange, FakePolicy, FakeRun


class ByRank(GroupSelector):
    """Rejects what each rank is told to, as a function that uses `hash()` does."""

    reason = "rejected by keep"

    def __init__(self, unlike: Callable[[], set[tuple[str, int]]]) -> None:
        self.unlike = unlike

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        return [place for place in left if (group.prompt.id, place) not in self.unlike()]


def groups() -> list[Group]:
    return [
        Group(
            Prompt(f"p{g}", "text", (1, g)),
            [Rollout(g, i, (g, i), f"{g} {i}", "stop") for i in range(3)],
            [Score(float(i)) for i in range(3)],
        )
        for g in range(3)
    ]


def on_ranks(work: Callable[[FakePolicy], Any], number: int = 2) -> list[Any]:
    """What each rank's work returns, or the error that it raises."""
    exchange = Exchange(number)
    found: list[Any] = [None] * number

    def one(rank: int) -> None:
        try:
            found[rank] = work(FakePolicy([], 4, exchange, rank))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found


def checked(
    chain_of: Callable[[int], Chain],
    groups_of: Callable[[int], list[Group]] = lambda rank: groups(),
    **further: Any,
) -> list[Any]:
    def work(policy: FakePolicy) -> Selection:
        rank, mine = policy.replica, groups_of(policy.replica)
        selection: Selection | Exception
        try:
            selection = chain_of(rank).select(mine, Progress(3, 9))
        except ValueError as error:
            selection = error
        return check_step(policy, 3, mine, selection, {name: of(rank) for name, of in further.items()})

    return on_ranks(work)


def one_error(found: Sequence[Any]) -> str:
    """The message that all ranks raise."""
    assert all(isinstance(error, RanksDiffer) for error in found), found
    (message,) = {str(error) for error in found}
    return message


def unlike(*by_rank: set[tuple[str, int]]) -> Callable[[int], Chain]:
    return lambda rank: Chain([Threshold(1.0), ByRank(lambda: by_rank[rank]), TopK(1)])


def test_ranks_that_agree_go_on() -> None:
    first, second = checked(unlike({("p1", 2)}, {("p1", 2)}), further=lambda rank: 5)
    assert first.reasons == second.reasons
    assert not first.keep[1, 2]


def test_equal_counts_of_different_rollouts_are_told_apart() -> None:
    """Each keeps one of p1, and another one; as many of all."""
    message = one_error(checked(unlike({("p1", 2)}, {("p1", 1)})))
    assert message.startswith(
        "step 3: the selections are not the same on all ranks, and nothing of it was trained"
    )
    assert (
        "rollout 1 of prompt p1 is rejected as 'rejected by keep' on one rank and is kept on another"
        in message
    )
    assert "that selector leaves 5 rollouts of the step on each, and 3 are kept in the end on each" in message


def test_different_counts_are_told_with_the_rollout_and_the_causes() -> None:
    message = one_error(checked(lambda rank: Chain([ByRank(lambda: {("p2", 0)} if rank else set())])))
    assert (
        "rollout 0 of prompt p2 is rejected as 'rejected by keep' on one rank and is kept on another"
        in message
    )
    assert "leaves 8 rollouts of the step on one rank and 9 on another" in message
    assert "8 are kept in the end on one rank and 9 on another" in message
    for cause in ("hash()", "PYTHONHASHSEED", "set", "random", "docs/selection.md"):
        assert cause in message


def test_the_selector_that_is_named_is_the_first_that_differs_and_not_what_follows_from_it() -> None:
    """`keep` differs at the last rollout of p1; what the top 1 then keeps of it comes before that one."""
    message = one_error(checked(unlike({("p1", 2)}, set())))
    assert "rollout 2 of prompt p1 is rejected as 'rejected by keep'" in message


def test_a_selector_that_fails_on_one_rank_ends_the_others_too() -> None:
    def fails(rank: int) -> Chain:
        def broken() -> set[tuple[str, int]]:
            if rank == 1:
                raise ValueError("no such file")
            return set()

        return Chain([ByRank(broken)])

    first, second = checked(fails)
    assert isinstance(first, RanksDiffer)
    assert "failed on another rank" in str(first)
    assert str(second) == "no such file"


def test_candidates_that_differ_are_named_by_prompt() -> None:
    def others(rank: int) -> list[Group]:
        made = groups()
        if rank:
            made[1].scores[2] = Score(2.5)
        return made

    message = one_error(checked(lambda rank: Chain([]), others))
    assert "the candidates are not the same" in message
    assert "prompt p1 (1 of the step" in message
    message = one_error(checked(lambda rank: Chain([]), lambda rank: groups()[: 3 - rank]))
    assert "there are 2 prompts on one rank and 3 on another" in message


def test_what_else_ranks_come_to_by_themselves_is_compared() -> None:
    message = one_error(checked(lambda rank: Chain([]), anchors=lambda rank: rank))
    assert "step 3: anchors are not the same on all ranks" in message


def test_what_a_run_starts_from_is_compared() -> None:
    def start(policy: FakePolicy) -> None:
        prompts = [Prompt("a", "", (1, 2)), Prompt("b", "", (3 + policy.replica,))]
        rows = [TrainingRow((1,), (2,))]
        check_inputs(policy, {"the prompts": digest_of_prompts(prompts), "the rows": digest_of_rows(rows)})

    message = one_error(on_ranks(start))
    assert message.startswith("the prompts are not the same on all ranks")


def test_a_digest_tells_parts_apart_and_is_exact_as_a_double() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"ab") == digest(b"ab")
    assert all(float(digest(number)) == digest(number) for number in range(100))
    assert digest_of_prompts([Prompt("a", "", (1, 2)), Prompt("b", "", ())]) != digest_of_prompts(
        [Prompt("a", "", (1,)), Prompt("b", "", (2,))]
    )


# In a run


class Moody(GroupSelector):
    """From step 2 on each replica rejects another rollout of each group."""

    reason = "rejected by moody"

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        number = int(threading.current_thread().name.removeprefix("replica "))
        return [place for place in left if progress.step == 1 or place != number]


def test_a_run_stops_before_it_trains_and_has_saved_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["replica 1"])
    start = threading.Thread.start

    def named(thread: threading.Thread) -> None:
        thread.name = next(names, thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", named)
    monkeypatch.setattr(threading.current_thread(), "name", "replica 0")
    monkeypatch.setattr("rs_aligner.trainers.rs.chain_of", lambda *_, **__: Chain([Moody()]))
    run = FakeRun(tmp_path / "run")
    with pytest.raises(RanksDiffer, match=r"step 2: .*rejected by moody"):
        run.start(steps=4, interval=None, replicas=2)
    assert len(run.errors) == 2
    assert len({str(error) for error in run.errors}) == 1
    assert run.checkpoints() == ["step_000001"]
    assert run.ledger.steps() == [1]


# The run's folder


def test_ranks_that_see_the_same_folder_go_on_and_leave_no_trace(tmp_path: Path) -> None:
    (tmp_path / ".seen_by_all_ranks_of_a_killed_start").touch()
    found = on_ranks(lambda policy: check_folder(policy, tmp_path, is_first=policy.replica == 0), 3)
    assert found == [None] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_has_another_folder_is_named_and_no_rank_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marker, "WAIT_SECONDS", 0.0)
    folders = [tmp_path, tmp_path, tmp_path / "another"]
    folders[2].mkdir()
    errors = on_ranks(
        lambda policy: check_folder(policy, folders[policy.replica], is_first=policy.replica == 0), 3
    )
    assert all(isinstance(error, ValueError) for error in errors)
    assert f"exp_manager.explicit_log_dir={folders[2]} is not seen by rank 0 on " in str(errors[2])
    assert "whose own message says on which host" in str(errors[0])
    assert list(folders[2].iterdir()) == []
