"""One run, one owner: who gets a folder, who is refused, and who finds that it was taken over."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from rs_aligner.child import process_started
from rs_aligner.record.claims import Owner, claims_in
from rs_aligner.record.lease import Lease, LeaseLost, SharedLease

WHAT = "exp_manager.explicit_log_dir=runs/first"


def lease(folder: Path, **settings: object) -> Lease:
    # Settings of many types.
    return Lease(folder / "owner", WHAT, **{"renew_every": None, **settings})  # type: ignore[arg-type]  # of the test's own


def elsewhere(host: str = "node7") -> Owner:
    return replace(Owner.here(), host=host, place=f"{host}/1")


def gone() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["true"])
    process.wait()
    return process


# One process after the other


def test_a_folder_is_free_again_when_it_is_given_back_and_nothing_is_left(tmp_path: Path) -> None:
    for _ in range(3):
        with lease(tmp_path) as mine:
            mine.check()
            mine.renew()
    assert list(tmp_path.iterdir()) == []


def test_who_has_a_folder_is_named_to_the_next_with_what_to_do(tmp_path: Path) -> None:
    here, parent = Owner.here(), os.getppid()
    owner = replace(here, pid=parent, process_started=process_started(parent) or "")
    with lease(tmp_path, me=owner), pytest.raises(ValueError, match="is in use by process") as refused:
        lease(tmp_path).take()
    told = str(refused.value)
    assert told.startswith(f"{WHAT} is in use by process {parent} on {here.host}, since {owner.since}: ")
    assert f"kill {parent} on {here.host}" in told
    assert "\n" not in told


def test_a_process_that_has_a_folder_does_not_get_it_twice(tmp_path: Path) -> None:
    with lease(tmp_path) as mine:
        with pytest.raises(ValueError, match="in use by this very process"):
            lease(tmp_path).take()
        mine.check()


def test_a_dead_process_of_this_host_is_followed_at_once(tmp_path: Path) -> None:
    lease(tmp_path, me=replace(Owner.here(), pid=gone().pid)).take()
    with lease(tmp_path, clock=Clock()) as mine:  # whose sleep fails
        mine.check()


def test_a_process_with_the_id_of_one_that_is_dead_is_another_one(tmp_path: Path) -> None:
    lease(tmp_path, me=replace(Owner.here(), process_started="1")).take()
    with lease(tmp_path, clock=Clock()) as mine:
        mine.check()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "owner").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot be used: File exists: .*owner") as refused:
        lease(tmp_path).take()
    assert "\n" not in str(refused.value)


def test_the_other_ranks_look_at_the_first_ones_lease(tmp_path: Path) -> None:
    mine = lease(tmp_path, me=elsewhere("a"), clock=Clock(tick=True)).take()
    rank = mine.shared
    rank.check()
    with lease(tmp_path, clock=Clock(tick=True)), pytest.raises(LeaseLost, match="was taken over"):
        rank.check()
    assert isinstance(rank, SharedLease)


# Silence, with a clock of our own


class Clock:
    """Time that passes only while somebody sleeps, who then sees what others do meanwhile."""

    def __init__(self, *, tick: bool = False) -> None:
        self.now, self.tick = 0.0, tick
        self.others: list[Actor] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert self.tick, "nothing needs waiting for"
        self.now += seconds
        for other in self.others:
            other.live(self.now)


class Actor:
    """A process of a host, which renews its lease every 10 s unless it is paused."""

    def __init__(self, folder: Path, clock: Clock, host: str) -> None:
        self.folder, self.clock, self.host = folder, clock, host
        self.lease: Lease | None = None
        self.paused = False
        self.next_renewal = 0.0

    def live(self, now: float) -> None:
        if self.lease is not None and not self.paused and now >= self.next_renewal:
            self.next_renewal = now + 10
            with contextlib.suppress(LeaseLost):
                self.lease.renew()

    @property
    def owns(self) -> bool:
        """Whether it would write now, if it is not paused."""
        if self.lease is None:
            return False
        try:
            self.lease.check()
        except LeaseLost:
            return False
        return True

    def start(self) -> bool:
        new = lease(self.folder, me=elsewhere(self.host), clock=self.clock)
        try:
            new.take()
        except ValueError:
            return False
        self.lease, self.paused = new, False
        self.next_renewal = self.clock.now + 10
        return True


MOVES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["start", "pause", "wake", "end", "sleep 5", "sleep 50", "sleep 200"]),
    ),
    max_size=12,
)


@given(moves=MOVES)
@settings(max_examples=60)
def test_at_no_time_two_processes_find_a_folder_theirs(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str]]
) -> None:
    folder, clock = tmp_path_factory.mktemp("run"), Clock(tick=True)
    actors = clock.others = [Actor(folder, clock, f"host{number}") for number in range(4)]
    for number, move in moves:
        actor = actors[number]
        owners = [one for one in actors if one.owns]
        assert len(owners) <= 1
        match move.split():
            case ["start"] if actor.lease is None:
                living = [one for one in owners if not one.paused]
                assert actor.start() == (not living)  # a paused one is silent for 60 s, and loses it
            case ["pause"]:
                actor.paused = True
            case ["wake"]:
                actor.paused = False
            case ["end"] if actor.lease is not None and not actor.paused:
                actor.lease.give_back()
                actor.lease = None
            case ["sleep", seconds]:
                clock.sleep(float(seconds))
        assert len(claims_in(folder / "owner")) <= 1


def test_who_is_heard_within_a_minute_keeps_the_folder_whatever_its_clock_says(tmp_path: Path) -> None:
    clock = Clock(tick=True)
    owner = Actor(tmp_path, clock, "node7")
    owner.start()
    clock.others = [owner]
    [claim] = claims_in(tmp_path / "owner")
    os.utime(claim.path, (0, 0))  # of a host whose clock says 1970
    owner.next_renewal = 55.0
    with pytest.raises(ValueError, match="is in use by process"):
        lease(tmp_path, clock=clock).take()
    assert 50 < clock.now < 60
    owner.paused = True
    with lease(tmp_path, clock=clock):
        assert not owner.owns
    assert clock.now > 110


def test_a_claim_that_cannot_be_read_counts_as_somebodys_until_it_was_silent(tmp_path: Path) -> None:
    with lease(tmp_path):
        [claim] = claims_in(tmp_path / "owner")
    for content in (b"", b"{}", b"\xff", claim.content[:-20], claim.content.replace(b'"pid": ', b'"pid": 9')):
        (tmp_path / "owner").mkdir(exist_ok=True)
        claim.path.write_bytes(content)
        clock = Clock(tick=True)
        with lease(tmp_path, clock=clock) as mine:
            mine.check()
        assert clock.now >= 60


# Real processes

START = """
import sys, time
from dataclasses import replace
from pathlib import Path
from rs_aligner.child import process_started
from rs_aligner.record.claims import Owner
from rs_aligner.record.lease import Lease, LeaseLost
folder = Path(sys.argv[1])
"""
RACE = (
    START
    + """
print("ready", flush=True)
for line in sys.stdin:
    time.sleep(max(0, float(line) - time.time()))
    try:
        mine = Lease(folder / "owner", "it").take()
    except ValueError:
        print("refused", flush=True)
    else:
        mine.check()
        print("mine", flush=True)
        sys.stdin.readline()
        mine.give_back()
"""
)


@contextlib.contextmanager
def started(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], what: object) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()


def test_of_many_starts_at_the_same_moment_exactly_one_wins(tmp_path: Path) -> None:
    """Into a free folder, and behind a dead owner's claim."""
    with contextlib.ExitStack() as stack:
        all_of_them = [stack.enter_context(started(RACE, str(tmp_path))) for _ in range(6)]
        for process in all_of_them:
            assert said(process) == "ready"
        for number in range(10):
            if number % 2:
                lease(tmp_path, me=replace(Owner.here(), process_started="1")).take()
            moment = time.time() + 0.02 + 0.01 * random.Random(number).random()
            for process in all_of_them:
                tell(process, moment)
            found = [said(process) for process in all_of_them]
            assert sorted(found) == ["mine"] + ["refused"] * (len(all_of_them) - 1)
            winner = all_of_them[found.index("mine")]
            tell(winner, "end")
            while (tmp_path / "owner").exists():
                time.sleep(0.001)


WRITE = (
    START
    + """
me = replace(Owner.here(), place=sys.argv[2])
with Lease(folder / "owner", "it", me=me, silence=1.0, renew_every=0.1) as mine:
    try:
        while True:
            mine.check()
            with (folder / "rows").open("a") as file:
                file.write(sys.argv[2] + "\\n")
            print("wrote", flush=True)
            if not sys.stdin.readline():
                break
    except LeaseLost as error:
        print(error, flush=True)
"""
)


def test_a_stopped_owner_that_wakes_up_behind_a_takeover_writes_nothing(tmp_path: Path) -> None:
    with started(WRITE, str(tmp_path), "first") as first:
        assert said(first) == "wrote"
        with started(WRITE, str(tmp_path), "second") as second:
            assert said(second) == ""  # refused: the first one lives, and is heard
        first.send_signal(signal.SIGSTOP)
        with started(WRITE, str(tmp_path), "third") as third:
            assert said(third) == "wrote"
            first.send_signal(signal.SIGCONT)
            tell(first, "go on")
            assert "was taken over by process" in said(first)
            assert first.wait(timeout=20) == 0
            tell(third, "go on")
            assert said(third) == "wrote"
            assert len(claims_in(tmp_path / "owner")) == 1
    assert (tmp_path / "rows").read_text().split() == ["first", "third", "third"]


def test_what_is_killed_is_followed_at_once(tmp_path: Path) -> None:
    with started(RACE, str(tmp_path)) as killed:
        assert said(killed) == "ready"
        tell(killed, 0)
        assert said(killed) == "mine"
        killed.kill()
        killed.wait()
        [claim] = claims_in(tmp_path / "owner")
        assert json.loads(claim.content)["pid"] == killed.pid
    with lease(tmp_path, clock=Clock()) as mine:
        mine.check()
