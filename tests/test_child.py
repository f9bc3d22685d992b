"""Processes that end with whoever started them, whatever ended that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from rs_aligner.answers.library import Library
from rs_aligner.child import start_process

# It ignores what can be ignored, and so does what it starts: only the kernel ends them.
DEAF = """
import os, signal, sys, time
from rs_aligner.child import die_with_parent
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
die_with_parent(int(sys.argv[1]))
os.write(1, f"{os.getpid()} ".encode())  # whole: several write to one pipe, and print may do it in pieces
time.sleep(120)
"""
PARENT = """
import os, sys, threading, time
from rs_aligner.answers.library import Library
from rs_aligner.child import start_process
deaf = [sys.executable, "-c", sys.argv[1], str(os.getpid())]
threading.Thread(target=start_process, args=(deaf,)).start()  # a thread that ends at once
start_process(deaf)
JUDGES
time.sleep(120)
"""
JUDGES = """
from rs_aligner.answers.library import Library
from rs_aligner.child import Child
from rs_aligner.reward.judges.limit import LimitedJudge
judge = LimitedJudge(sys.argv[2], {}, None)
library = Library()
library.same("\\\\sin x", "x")
os.write(1, f"{judge._workers[0]._child._process.pid} {library._child._process.pid} ".encode())
threading.Thread(target=judge.score_texts, args=(["p"], ["r"], [{}])).start()
"""
# The judge blocks every signal that can be blocked, in C, and somebody else holds its connection open.
STUCK = """
import os, signal, subprocess
def judge(prompts, responses, metadata):
    if prompts != ["p"]:
        return [0.0] * len(prompts)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    subprocess.Popen(["sleep", "3"], close_fds=False)
    while True:
        pass
"""


def pids(parent: subprocess.Popen[bytes], number: int) -> list[int]:
    """The first numbers that it and its processes write, a space behind each."""
    assert parent.stdout is not None
    found = b""
    while found.count(b" ") < number:
        piece = os.read(parent.stdout.fileno(), 100)
        assert piece, f"the parent ended; it wrote {found!r}"
        found += piece
    return [int(one) for one in found.split()]


def test_nothing_is_left_of_what_a_killed_process_had_started(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    program = PARENT.replace("JUDGES", JUDGES)
    command = [sys.executable, "-c", program, DEAF, f"{tmp_path}/stuck.py:judge"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        children = [psutil.Process(pid) for pid in pids(parent, 4)]
        try:
            assert all(child.is_running() for child in children)
            os.kill(parent.pid, signal.SIGKILL)
            _, alive = psutil.wait_procs(children, timeout=20)
            assert alive == []
        finally:
            for child in children:
                if child.is_running():
                    child.kill()


def test_a_child_outlives_the_thread_that_asked_for_it() -> None:
    started: list[subprocess.Popen[bytes]] = []
    command = [sys.executable, "-c", DEAF, str(os.getpid())]
    thread = threading.Thread(target=lambda: started.append(start_process(command, stdout=subprocess.PIPE)))
    thread.start()
    thread.join()
    with started[0] as child:
        try:
            assert pids(child, 1) == [child.pid]
            assert child.poll() is None
        finally:
            child.kill()


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    command = [sys.executable, "-c", DEAF, str(gone.pid)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


def test_a_forked_process_can_start_some_of_its_own() -> None:
    """Megatron forks writers; what they start must not wait for a thread that only their parent has."""
    start_process(["true"]).wait()
    pid = os.fork()
    if pid == 0:
        os._exit(start_process(["true"]).wait())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_asks_a_run_to_stop_ends_none_of_the_processes_that_it_has_started() -> None:
    library = Library()
    try:
        assert library.same("\\sin x", "\\sin x")
        process = library._child._process
        assert process is not None
        for number in (
            signal.SIGUSR1,
            signal.SIGTERM,
            signal.SIGINT,
        ):  # Slurm signals all processes of a step
            process.send_signal(number)
        assert not library.same("\\sin x", "\\cos x")
        assert process.poll() is None
    finally:
        library.close()
