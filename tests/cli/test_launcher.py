"""The launcher of ranks: statuses, signals, a killed rank, its own death; the ranks are small scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rs_aligner.cli.launcher import launch
from tests.conftest import ROOT

PROLOGUE = """
import os, signal, sys, time
from rs_aligner.cli.launcher import started_by_launcher
started_by_launcher()
rank, place = int(os.environ["RANK"]), sys.argv[1]
def ready():
    print(f"rank {rank} is ready", flush=True)
    open(f"{place}/{rank}", "w").write(str(os.getpid()))
"""
LAUNCH = """
import sys
from rs_aligner.cli import launcher
launcher.SPARE_SECONDS = launcher.GRACE_SECONDS = 0.5
sys.exit(launcher.launch([sys.executable, "-u", sys.argv[1] + "/rank.py", sys.argv[1]], 2))
"""


class Launched:
    """A launcher of two ranks, each of which runs a script."""

    def __init__(self, place: Path, script: str) -> None:
        self.place = place
        (place / "rank.py").write_text(PROLOGUE + script)
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(place)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self) -> list[int]:
        """Of the ranks, once both say that they are ready."""
        while True:
            texts = [path.read_text() for path in (self.place / "0", self.place / "1") if path.exists()]
            if len(texts) == 2 and all(texts):
                return [int(text) for text in texts]
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.parametrize(
    ("statuses", "status"),
    [((0, 0), 0), ((75, 75), 75), ((0, 75), 75), ((1, 0), 1), ((2, 2), 2), ((0, 3), 1)],
)
def test_it_ends_as_its_ranks_end(statuses: tuple[int, int], status: int) -> None:
    first, second = statuses
    assert launch(["sh", "-c", f"[ $RANK = 0 ] && exit {first}; exit {second}"], 2) == status


def test_an_error_that_all_ranks_come_to_is_shown_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["sh", "-c", "echo error: a key is wrong >&2; echo rank $RANK; exit 2"], 2) == 2
    out, err = capfd.readouterr()
    assert err == "error: a key is wrong\n"
    assert sorted(out.splitlines()) == ["rank 0", "rank 1"]


WAITS = """
def stop(number, frame):
    print("told", signal.Signals(number).name, flush=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os._exit(75) if sys.argv[-1] != "stubborn" else None  # where Python is in a finalizer, too
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
ready()
time.sleep(60)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_handed_on_once_and_the_ranks_end_by_themselves(number: int, tmp_path: Path) -> None:
    launched = Launched(tmp_path, WAITS)
    launched.pids()
    launched.process.send_signal(number)
    status, out, _ = launched.end()
    assert status == 75
    assert out.count(f"told {signal.Signals(number).name}") == 2


def test_a_wish_to_stop_waits_for_a_rank_that_does_not_listen_yet(tmp_path: Path) -> None:
    """SIGUSR1 comes from Slurm, and asks for no end; who has no handler would be killed by it."""
    script = """
from rs_aligner import stopping
if rank == 0:  # listens already
    with stopping.signals(second_interrupt=signal.SIG_DFL):
        ready()
        while not stopping.is_asked():
            time.sleep(0.02)
        open(f"{place}/told", "w").close()
        sys.exit(75)
ready()
while not os.path.exists(f"{place}/told"):
    time.sleep(0.02)
with stopping.signals(second_interrupt=signal.SIG_DFL):
    sys.exit(75 if stopping.is_asked() else 3)
"""
    launched = Launched(tmp_path, script)
    launched.pids()
    launched.process.send_signal(signal.SIGUSR1)
    status, _, err = launched.end()
    assert (status, "killed by" in err) == (75, False)


def test_a_second_interrupt_ends_it_as_usual(tmp_path: Path) -> None:
    script = WAITS.replace('sys.argv[-1] != "stubborn"', "False")
    launched = Launched(tmp_path, script)
    pids = launched.pids()
    launched.process.send_signal(signal.SIGINT)
    for _ in range(2):
        while "told SIGINT" not in (launched.process.stdout.readline() if launched.process.stdout else ""):
            pass
    launched.process.send_signal(signal.SIGINT)
    status, _, err = launched.end()
    assert status == 130
    assert "killed by" not in err
    assert not any(map(psutil.pid_exists, pids))


def test_a_signal_before_a_rank_listens_ends_it_as_usual(tmp_path: Path) -> None:
    launched = Launched(tmp_path, "ready(); time.sleep(60)")
    launched.pids()
    launched.process.send_signal(signal.SIGTERM)
    assert launched.end()[0] == 143


def test_a_killed_rank_is_named_and_ends_the_others_even_one_that_hears_nothing(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready(); time.sleep(60)"
    launched = Launched(tmp_path, script)
    pids = launched.pids()
    os.kill(pids[1], signal.SIGKILL)
    status, _, err = launched.end()
    assert status == 1
    [line] = [line for line in err.splitlines() if line.startswith("error")]
    assert "rank 1 on " in line
    assert 'killed by SIGKILL (perhaps for want of memory); its last line: "rank 1 is ready"' in line
    assert not any(map(psutil.pid_exists, pids))


def test_the_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launched = Launched(tmp_path, "ready(); time.sleep(60)")
    ranks = [psutil.Process(pid) for pid in launched.pids()]
    launched.process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=30)
    launched.process.communicate()
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_sigquit_reaches_the_ranks_and_ends_nobody(tmp_path: Path) -> None:
    script = """
from rs_aligner.watchdog import show_stacks_on_quit
show_stacks_on_quit()
def here():
    ready()
    while not os.path.exists(f"{place}/go"):
        time.sleep(0.05)
here()
"""
    launched = Launched(tmp_path, script)
    launched.pids()
    launched.process.send_signal(signal.SIGQUIT)
    for _ in range(2):
        assert launched.process.stderr is not None
        while "in here" not in launched.process.stderr.readline():
            pass
    (tmp_path / "go").touch()
    assert launched.end()[0] == 0
