"""The judge of code: limits, failures, threads, ends, settings, and what it says of the machine."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rs_aligner.config import JudgeConfig, ServeRewardConfig
from rs_aligner.reward.client.in_process import LocalJudge
from rs_aligner.reward.counters import counters_of
from rs_aligner.reward.judges import load_judge, remarks_of
from rs_aligner.reward.judges.base import BadSetting
from rs_aligner.reward.judges.code import CodeJudge
from rs_aligner.reward.server.check import check
from rs_aligner.rollout import ScoreFailure
from rs_aligner.sandbox import Limits, Sandbox, SandboxError
from rs_aligner.sandbox.box import _START
from tests.conftest import ROOT
from tests.reward.judges.code.conftest import Make
from tests.reward.judges.code.machine import python_of_all
from tests.reward.judges.code.zoo import ASSERTIONS, CALLS, INPUT, RIGHT, WRONG

pytestmark = pytest.mark.timeout(120)

LOOPS = "def double(x):\n    while True: pass"


def rewards(judge: Any, *programs: str, row: dict[str, Any] = ASSERTIONS) -> list[float]:
    scores = judge.score_texts([""] * len(programs), list(programs), [row] * len(programs))
    assert not [score for score in scores if isinstance(score, ScoreFailure)], scores
    return [score["reward"] for score in scores]


@pytest.mark.slow
def test_rows_that_hang_cost_the_others_nothing_but_a_place(make: Make) -> None:
    judge = make(time_limit=1.5, workers=4)
    hangs = "import time\ndef double(x):\n    time.sleep(100)"
    programs = [RIGHT if i % 4 else hangs for i in range(128)]
    random.Random(3).shuffle(programs)
    assert rewards(judge, *programs) == [float(program is RIGHT) for program in programs]
    assert judge.counters == {"timed_out_rows": 32, "worker_restarts": 0}


def test_what_passed_before_the_time_was_over_counts(make: Make) -> None:
    judge = make(time_limit=1.5)
    program = "import time\ndef double(x):\n    while x > 3: time.sleep(1)\n    return 2 * x"
    assert rewards(judge, program) == [0.5]
    assert rewards(judge, program, row=CALLS) == [0.5]
    assert rewards(judge, "x = int(input())\nwhile x > 3: pass\nprint(2 * x)", row=INPUT) == [0.5]
    assert judge.counters["timed_out_rows"] == 3


def test_a_row_fails_alone(judge: CodeJudge) -> None:
    rows = [{"id": "a"}, ASSERTIONS, {"id": "b", "tests": 1}]
    scores = judge.score_texts([""] * 3, [RIGHT] * 3, rows)
    assert [isinstance(score, ScoreFailure) for score in scores] == [True, False, True]
    assert judge.score_texts([], [], []) == []


def test_programs_have_the_same_score_each_time(judge: CodeJudge) -> None:
    program = (
        "import random\nprint({'a', 'b', 'c', 'd'}, random.random(), random.randrange(10**9), hash('x'))"
    )
    row = {"tests": {"inputs": ["", ""], "outputs": ["", ""]}}
    (score,) = judge.score_texts([""], [program + "\nif not input: pass"], [row])
    assert isinstance(score, dict)
    said = {_output(judge, program) for _ in range(3)}
    assert len(said) == 1
    assert said.pop()


def _output(judge: CodeJudge, program: str) -> str | None:
    with judge._box.slot() as slot:
        return judge._output(slot, program, "", 10.0)[0]


def test_a_sandbox_that_ends_fails_its_rows_and_is_started_again(make: Make) -> None:
    judge = make(time_limit=30.0)
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.extend(judge.score_texts([""], [LOOPS], [ASSERTIONS])))
    asking.start()
    process = judge._box._process
    assert process is not None
    while not judge._box._jobs:
        pass
    os.kill(process.pid, signal.SIGKILL)
    asking.join(60)
    (failure,) = found
    assert isinstance(failure, ScoreFailure)
    assert "sandbox" in failure.reason
    assert rewards(judge, RIGHT, WRONG) == [1.0, 0.0]
    assert judge.counters["worker_restarts"] == 1


def test_a_judge_that_is_closed_lets_its_callers_go(make: Make) -> None:
    judge = make(time_limit=60.0)
    found: list[Any] = []
    asking = threading.Thread(
        target=lambda: found.extend(judge.score_texts([""] * 2, [LOOPS] * 2, [ASSERTIONS] * 2))
    )
    asking.start()
    while not judge._box._jobs:
        pass
    judge.close()
    judge.close()
    asking.join(60)
    assert [type(score) for score in found] == [ScoreFailure] * 2
    (late,) = judge.score_texts([""], [RIGHT], [ASSERTIONS])
    assert late == ScoreFailure("the judge was closed")


@pytest.mark.parametrize("namespaces", [pytest.param("auto", marks=pytest.mark.slow), "never"])
def test_everything_ends_with_its_parent_even_when_that_is_killed(tmp_path: Path, namespaces: str) -> None:
    python = python_of_all() if namespaces == "never" else None
    if namespaces == "never" and python is None:
        pytest.skip("needs a Python that every user can read")
    code = (
        "import threading, time\n"
        "from rs_aligner.reward.judges.code import CodeJudge\n"
        f"judge = CodeJudge(time_limit=300, workers=2, namespaces={namespaces!r}, python={python!r})\n"
        f"row, program = {ASSERTIONS!r}, {LOOPS!r}\n"
        "threading.Thread(target=judge.score_texts, args=([''] * 2, [program] * 2, [row] * 2)).start()\n"
        "while len(judge._box._jobs) < 4: time.sleep(0.01)\n"
        "print(flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        processes: list[psutil.Process] = []
        while len(processes) < 5:  # the one that forks, two programs and their tests
            processes = psutil.Process(parent.pid).children(recursive=True)
        os.kill(parent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert alive == []


def test_settings_that_cannot_be_are_named() -> None:
    for settings, reason in (
        ({"score": "half"}, r"judge.kwargs.score is 'half': should be one of share, all"),
        ({"namespaces": "yes"}, r"judge.kwargs.namespaces is 'yes'"),
        ({"memory": 1}, r"judge.kwargs.memory is 1: should be MiB, at least 128"),
        ({"tolerance": 2}, r"judge.kwargs.tolerance is 2"),
        ({"python": "/no/such/python"}, r"/no/such/python cannot be started"),
        ({"python": "/bin/false"}, r"/bin/false ended with status 1"),
        ({"keys": {"test": "x"}}, r"judge.kwargs.keys.test is 'x': there are tests, setup, entry, function"),
        ({"language": "c"}, r"code does not take them: .*'language'"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_judge(JudgeConfig(name="code", kwargs=settings))
    with pytest.raises(ValueError, match=r"judge.time_limit is null"):
        load_judge(JudgeConfig(name="code", time_limit=None))


def test_where_namespaces_are_required_and_refused_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unshare` fails here as in a container that allows none; by default the judge goes on, and says so."""
    monkeypatch.setattr("rs_aligner.sandbox.box._START", "import ctypes, errno\n" + _NO_UNSHARE + _START)
    with pytest.raises(BadSetting, match=r"programs cannot be run here as they have to be: .*unshare"):
        CodeJudge(namespaces="required")
    if (python := python_of_all()) is None:
        pytest.skip("needs a Python that every user can read")
    judge = CodeJudge(python=python)
    try:
        assert rewards(judge, RIGHT, WRONG) == [1.0, 0.0]
        assert any("there are no namespaces here (PermissionError" in line for line in judge.remarks)
    finally:
        judge.close()


_NO_UNSHARE = """
class Refusing(ctypes.CDLL):
    def __getattr__(self, name):
        if name != "unshare":
            return super().__getattr__(name)
        def unshare(flags):
            ctypes.set_errno(errno.EPERM)
            return -1
        return unshare
ctypes.CDLL = Refusing
"""


@pytest.mark.parametrize(
    ("without", "what"),
    [
        ("jail.forbid = lambda writing: None", "programs can start processes"),
        ("jail.resource.setrlimit = lambda *given: None", "the limit of memory does not bind programs"),
    ],
)
def test_what_can_do_what_none_may_is_not_served(
    monkeypatch: pytest.MonkeyPatch, without: str, what: str
) -> None:
    without = f"import rs_aligner.sandbox.jail as jail; {without}; "
    start = _START.replace("from rs_aligner", without + "from rs_aligner", 1)
    monkeypatch.setattr("rs_aligner.sandbox.box._START", start)
    with pytest.raises(BadSetting, match=f"programs cannot be run safely here: {what}"):
        CodeJudge()


def test_where_nothing_hides_files_that_is_said_as_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if (python := python_of_all()) is None:
        pytest.skip("needs a Python that every user can read")
    without = "import rs_aligner.sandbox.zygote as z; z._rules = lambda: (None, 'no Landlock'); "
    start = _START.replace("from rs_aligner", without + "from rs_aligner", 1)
    monkeypatch.setattr("rs_aligner.sandbox.box._START", start)
    judge = CodeJudge(namespaces="never", python=python)
    try:
        assert judge.remarks[-1].startswith("NOT protected: they can read what their user may")
        assert [r.levelname for r in caplog.records if "NOT protected" in r.getMessage()] == ["WARNING"]
        assert rewards(judge, "open('/etc/rs_zoo', 'w')\n" + RIGHT, RIGHT) == [0.0, 1.0]
    finally:
        judge.close()


def test_the_config_makes_it_with_its_limit_and_its_workers(make: Make) -> None:
    config = JudgeConfig(name="code", time_limit=2, workers=3, kwargs={"python": make()._box._python})
    assert list(config.problems("judge")) == []
    judge = load_judge(config)
    try:
        assert isinstance(judge, CodeJudge)
        assert judge.takes_calls_at_once
        assert judge._seconds == 2.0
        assert judge._threads._max_workers == 3
        assert judge._box._slots.qsize() == 3
        other = make(time_limit=2.0, memory=300)
        assert len({judge.fingerprint, other.fingerprint}) == 2
    finally:
        judge.close()


def test_what_holds_on_this_machine_is_told(judge: CodeJudge) -> None:
    said = " ".join(remarks_of(judge))
    assert "one process each" in said
    assert "512 MiB of memory" in said
    assert ("as users that nobody else has" in said) == (os.geteuid() == 0)
    assert ("a file system of their own" in said) == judge._box.is_private
    lines: list[str] = []
    config = ServeRewardConfig.model_validate({"judge": {"name": "code"}, "check": True})
    check(config, judge, lines.append)
    assert f"  {judge.remarks[0]}" in lines


def test_parts_and_in_process_scores_have_it(make: Make) -> None:
    judge = load_judge(
        JudgeConfig.model_validate(
            {
                "parts": {
                    "works": {"name": "code", "kwargs": {"python": make()._box._python}},
                    "short": {"name": "length", "weight": 0.5, "kwargs": {"at_most": 10}},
                }
            }
        )
    )
    local = LocalJudge(judge, 8)
    try:
        column = np.array([[RIGHT.encode()], [WRONG.encode()]], dtype=object)
        row = np.array([[json.dumps(ASSERTIONS).encode()]] * 2, dtype=object)
        answer = local.infer(
            {"prompts": column, "responses": column, "metadata": row, "row_ids": column}, 60.0
        )
        assert answer["rewards"].tolist() == [[1.5], [0.5]]
        assert "works/passed" in answer["components"][0, 0].decode()
        assert counters_of(judge)["timed_out_rows"] == 0
        assert any(line.startswith("works: programs run on Python") for line in remarks_of(judge))
    finally:
        judge.close()


def test_slots_are_given_one_at_a_time() -> None:
    try:
        box = Sandbox(Limits(), 1)
    except SandboxError:
        pytest.skip("needs namespaces, or an interpreter that all may read")
    try:
        with box.slot() as slot:
            assert slot == 0
            assert box._slots.qsize() == 0
        assert box._slots.qsize() == 1
    finally:
        box.close()
