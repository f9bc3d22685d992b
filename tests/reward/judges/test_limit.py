"""A user's judge in a process of its own: a row that takes too long fails alone, and nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rs_aligner.config import JudgeConfig
from rs_aligner.reward.judges import TokenJudge, load_judge, score_rows
from rs_aligner.reward.judges.limit import LimitedJudge
from rs_aligner.rollout import Score, ScoreFailure
from tests.reward.judges.limited import Make, limited_judges, worker_processes

pytestmark = pytest.mark.timeout(60)

JUDGE = """
import os, re, signal, sys, time

def judge(prompts, responses, metadata, slow=0.0):
    if "ready" not in globals():  # the trial with made-up rows
        globals()["ready"] = True
        return [0.0] * len(responses)
    rewards = []
    for response in responses:
        time.sleep(slow)
        if response == "loop":
            while True:
                pass
        if response == "regex":  # waits in C, and holds the lock of the interpreter
            re.match("(a*)*b", "a" * 100)
        if response == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if response == "exit":
            sys.exit(3)
        if response == "raise":
            raise KeyError("this row is bad")
        rewards.append({"reward": len(response), "twice": 2 * len(response)})
    return rewards
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with limited_judges(tmp_path, JUDGE, seconds=1.0) as start:
        yield start


def score(judge: LimitedJudge, *responses: str) -> list[Score | ScoreFailure]:
    n = len(responses)
    return score_rows(judge.score_texts, ([""] * n, list(responses), [{}] * n), max_rows=64)


@pytest.mark.slow
@pytest.mark.parametrize("time_limit", [None, 20.0])
def test_a_judge_may_set_alarms_of_its_own_with_a_limit_and_without(
    tmp_path: Path, time_limit: float | None
) -> None:
    (tmp_path / "judge.py").write_text(
        "import signal, time\n"
        "def late(number, frame): raise TimeoutError\n"
        "def judge(prompts, responses, metadata):\n"
        "    signal.signal(signal.SIGALRM, late)\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "    try:\n"
        "        while responses[0] == 'loop': pass\n"
        "        return [1.0] * len(responses)\n"
        "    except TimeoutError:\n"
        "        return [0.5] * len(responses)\n"
        "    finally:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    judge = load_judge(JudgeConfig(function=f"{tmp_path}/judge.py:judge", time_limit=time_limit))
    try:
        assert judge.score_texts(["", ""], ["loop", ""], [{}, {}]) == [Score(0.5), Score(0.5)]
        assert judge.score_texts([""], ["a"], [{}]) == [Score(1.0)]
    finally:
        judge.close()
    assert worker_processes() == []


def test_scores_and_components_come_back_from_the_other_process(make: Make) -> None:
    scores = score(make(), "a", "raise", "abc")
    assert [scores[0], scores[2]] == [Score(1.0, {"twice": 2.0}), Score(3.0, {"twice": 6.0})]
    assert scores[1] == ScoreFailure("the judge raised KeyError: 'this row is bad'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("loop", "the judge took more than 1 s over this row (judge.time_limit)"),
        ("regex", "the judge took more than 1 s over this row (judge.time_limit)"),
        ("die", "the judge's process died over this row (exit status -9)"),
    ],
)
def test_a_row_that_takes_its_process_along_fails_alone(make: Make, bad: str, reason: str) -> None:
    judge = make()
    began = time.monotonic()
    scores = score(judge, "a", bad, "abc", "ab")
    assert time.monotonic() - began < 15
    assert [s.reward for s in scores if isinstance(s, Score)] == [1.0, 3.0, 2.0]
    assert scores[1] == ScoreFailure(reason)
    assert score(judge, "abcd") == [Score(4.0, {"twice": 8.0})]
    assert len(worker_processes()) == 1


def test_a_process_that_was_killed_while_it_waited_is_started_again_and_no_row_fails(make: Make) -> None:
    judge = make()
    (process,) = worker_processes()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # all its threads are gone, not only the first
    assert score(judge, "a") == [Score(1.0, {"twice": 2.0})]


@pytest.mark.slow
def test_a_judge_whose_code_has_changed_is_not_started_again(make: Make, tmp_path: Path) -> None:
    judge = make()
    (tmp_path / "judge.py").write_text(JUDGE + "# other\n")
    (process,) = worker_processes()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # all its threads are gone, not only the first
    (failure,) = score(judge, "a")
    assert isinstance(failure, ScoreFailure)
    assert failure.reason.endswith("its code is not what it was when the server started")


@pytest.mark.slow
def test_a_class_that_takes_token_ids_does_so_there_too(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "class Judge:\n"
        "    def score_texts(self, p, responses, m): return [0.0] * len(p)\n"
        "    def score_tokens(self, tokens, lengths):\n"
        "        while tokens[0, 0] == 9: pass\n"
        "        return lengths.tolist()\n"
    )
    judge = load_judge(JudgeConfig(function=f"{tmp_path}/judge.py:Judge", time_limit=1))
    try:
        assert isinstance(judge, TokenJudge)
        tokens = np.array([[9, 1], [1, 1], [1, 1]], dtype=np.int64)
        values = judge.score_tokens(tokens, np.array([2, 1, 2]))
        assert list(values[1:]) == [Score(1.0), Score(2.0)]
        assert isinstance(values[0], ScoreFailure)
    finally:
        judge.close()
    assert worker_processes() == []


@pytest.mark.slow
def test_rows_that_are_slow_only_together_get_their_scores(make: Make) -> None:
    judge = make(slow=0.15)
    rows = ["a" * i for i in range(12)]
    assert score(judge, *rows) == [Score(i, {"twice": 2.0 * i}) for i in range(12)]
    began = time.monotonic()
    assert score(judge, *rows) == [Score(i, {"twice": 2.0 * i}) for i in range(12)]
    assert time.monotonic() - began < 12 * 0.15 + 1, "what was learnt of the judge's pace is kept"


def test_a_judge_that_is_closed_in_mid_row_fails_it_at_once(make: Make) -> None:
    import threading

    judge = make(time_limit=50)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(score(judge, "loop", "a")))
    thread.start()
    time.sleep(0.3)
    judge.close()
    thread.join(10)
    assert not thread.is_alive()
    assert all(isinstance(result, ScoreFailure) for result in found)


def test_what_cannot_be_loaded_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=r"judge\.function: importing .*broken.py failed: ZeroDivisionError"):
        load_judge(JudgeConfig(function=f"{tmp_path}/broken.py:judge"))
    (tmp_path / "exits.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(ValueError, match=r"died while it was loaded \(exit status 3\)"):
        load_judge(JudgeConfig(function=f"{tmp_path}/exits.py:judge"))
    assert worker_processes() == []


def test_the_process_dies_with_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("import time\ndef judge(p, r, m): return [0.0] * len(p)\n")
    code = (
        "import time\n"
        "from rs_aligner.reward.judges.limit import LimitedJudge\n"
        f"judge = LimitedJudge('{tmp_path}/judge.py:judge', {{}}, 5.0)\n"
        "print(judge._workers[0]._child._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        child.wait(timeout=10)
    finally:
        parent.kill()
        parent.wait()
    assert not child.is_running()
