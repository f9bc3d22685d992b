"""What people and models write, and what has to go through the sandbox: it is judged by its answer alone."""

# ruff: noqa: E501  # programs read best as they are

from __future__ import annotations

import pytest

from rs_aligner.reward.judges.code import CodeJudge
from tests.reward.judges.code.conftest import Make
from tests.reward.judges.code.machine import python_of_all
from tests.reward.judges.code.zoo import INPUT

pytestmark = pytest.mark.timeout(120)

PROGRAMS = {
    "all of the input at once": "import sys\nx, = map(int, sys.stdin.read().split())\nsys.stdout.write(f'{2 * x}')",
    "lines until they end": "import sys\nfor line in sys.stdin:\n    print(int(line) * 2, flush=True)",
    "bytes": "import sys, os\nx = int(sys.stdin.buffer.readline())\nos.write(1, b'%d\\n' % (2 * x))",
    "input until it fails": "try:\n    while True: print(2 * int(input()))\nexcept EOFError: pass",
    "a main function": "def main():\n    print(2 * int(input()))\nif __name__ == '__main__':\n    main()",
    "a status of 0": "import sys\nprint(2 * int(input()))\nsys.exit(0)",
    "a list of lines": "open_lines = [line for line in open(0)]\nprint(2 * int(open_lines[0]))",
    "asyncio": "import asyncio\nasync def f(x):\n    await asyncio.sleep(0.001)\n    return 2 * x\nprint(asyncio.run(f(int(input()))))",
    "threads": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(8) as pool:\n    print(sum(pool.map(int, [input()] * 2)))",
    "a thread that outlasts the main one": "import threading, time\nx = int(input())\nthreading.Thread(target=lambda: (time.sleep(0.05), print(2 * x))).start()",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nx = int(input())\nprint(x + f(20000) - 20000 + x)",
    "dataclasses and generics": "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Generic, TypeVar\nT = TypeVar('T')\n@dataclass\nclass Box(Generic[T]):\n    held: T\nprint(Box(int(input())).held * 2)",
    "a module that is seldom there": "import colorsys, wave, sqlite3\nc = sqlite3.connect(':memory:')\nprint(c.execute('select 2 * ?', (int(input()),)).fetchone()[0])",
    "signals of its own": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()\nprint(2 * int(input()))",
    "much memory": "held = bytearray(200 << 20)\nprint(2 * int(input()))",
    "much output of another kind": "import sys\nsys.stderr.write('x' * 10**6)\nprint(2 * int(input()))",
    "at its exit": "import atexit\nx = int(input())\natexit.register(lambda: print(2 * x))",
    "limits that it asks for": "import resource\nresource.getrlimit(resource.RLIMIT_STACK)\nprint(2 * int(input()))",
    "signs": "print('١٢'.isdigit() and 2 * int(input()))\n# ünïcödé",
}  # fmt: skip  # a program a line


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_passes(judge: CodeJudge, name: str) -> None:
    (score,) = judge.score_texts([""], [PROGRAMS[name]], [INPUT])
    assert isinstance(score, dict), score
    assert score["reward"] == 1.0, score


def test_files_of_its_own_where_there_are_namespaces(judge: CodeJudge) -> None:
    if not judge._box.is_private:
        pytest.skip("needs namespaces")
    program = (
        "import os, tempfile\n"
        "with tempfile.NamedTemporaryFile('w+') as file:\n"
        "    file.write(input())\n"
        "    file.seek(0)\n"
        "    os.mkdir('folder')\n"
        "    print(2 * int(file.read()))\n"
    )
    (score,) = judge.score_texts([""], [program], [INPUT])
    assert isinstance(score, dict)
    assert score["reward"] == 1.0


def test_without_namespaces_they_pass_too(make: Make) -> None:
    if (python := python_of_all()) is None:
        pytest.skip("needs a Python that every user can read")
    judge = make(namespaces="never", python=python, time_limit=30.0)
    texts = list(PROGRAMS.values())
    scores = judge.score_texts([""] * len(texts), texts, [INPUT] * len(texts))
    rewards = [score["reward"] if isinstance(score, dict) else score for score in scores]
    assert [name for name, reward in zip(PROGRAMS, rewards, strict=True) if reward != 1.0] == []
