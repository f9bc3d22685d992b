"""`serve judge.name=code`, the real server, on rows as MBPP has them: scores, a few that hang, its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rs_aligner.config import EndpointConfig, RemoteRMConfig
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.rollout import Score, ScoreFailure
from tests.ports import free_port
from tests.reward.judges.code.machine import python_of_all
from tests.reward.rows import row
from tests.reward.server.test_server import metrics
from tests.reward.service import Service, service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TASKS: dict[str, dict[str, Any]] = {
    "vowels": {
        "text": "Write a function that counts the vowels of a text.",
        "test_setup_code": "",
        "test_list": ["assert vowels('queue') == 4", "assert vowels('') == 0", "assert vowels('Odd') == 1"],
    },
    "runs": {
        "text": "Write a function that gives the lengths of runs of equal numbers.",
        "test_setup_code": "long = [7] * 1000",
        "test_list": [
            "assert runs([1, 1, 2]) == [2, 1]",
            "assert runs([]) == []",
            "assert runs(long) == [1000]",
        ],
    },
    "mean": {
        "text": "Write a function that gives the mean of numbers.",
        "test_setup_code": "import math",
        "test_list": ["assert math.isclose(mean([1, 2]), 1.5)", "assert mean([3]) == 3"],
    },
}
ANSWERS: dict[str, list[tuple[str, float]]] = {
    "vowels": [
        ("def vowels(s):\n    return sum(c in 'aeiou' for c in s.lower())", 1.0),
        ("def vowels(s):\n    return sum(c in 'aeiou' for c in s)", 2 / 3),
        ("def vowels(s):\n    while True: pass", 0.0),
        ("def vowels(s):\n    import os\n    os._exit(0)", 0.0),
    ],
    "runs": [
        (
            "from itertools import groupby\ndef runs(x):\n    return [len(list(g)) for _, g in groupby(x)]",
            1.0,
        ),
        ("def runs(x):\n    return []", 1 / 3),
        ("def runs(x):\n    import time\n    time.sleep(100)", 0.0),
        ("def runs(x) return x", 0.0),
    ],
    "mean": [
        ("def mean(x):\n    return sum(x) / len(x)", 1.0),
        ("def mean(x):\n    return sum(x) // len(x)", 1 / 2),
        ("import signal\nsignal.pause()\ndef mean(x): return 0", 0.0),
        ("I cannot.", 0.0),
    ],
}
NUM_HANG = 3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("code")
    overrides = ["judge.name=code", "judge.workers=4", "judge.time_limit=3"]
    if python_of_all() is not None:  # for machines without namespaces, whose own may be out of reach
        overrides.append(f"judge.kwargs={{python: {python_of_all()}}}")
    with service(folder, free_port(), *overrides) as running:
        running.wait_until_ready()
        yield running


def test_what_holds_is_told_at_the_start(served: Service) -> None:
    assert "judge: programs run on Python" in served.output
    assert served.output.index("judge: programs run") < served.output.index("ready at")


def test_each_answer_has_its_share_and_those_that_hang_keep_nobody(served: Service, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"id": name, **task}) + "\n" for name, task in TASKS.items()))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    endpoint = EndpointConfig(name="reward_model", ip="127.0.0.1", port=served.port)
    asked = [(task, text, share) for task in rows for text, share in ANSWERS[task["id"]]]
    with RemoteGPTRMClient(RemoteRMConfig(reward_model=endpoint, on_failure="drop")) as client:
        futures = [
            client.submit(*row(f"```python\n{text}\n```" if "def" in text else text, **task))
            for task, text, _ in asked
        ]
        without = client.submit(*row("def f(): pass"))
        scores = [future.result(timeout=60) for future in futures]
        failure = without.result(timeout=60)
    assert [score.reward for score in scores if isinstance(score, Score)] == [share for _, _, share in asked]
    late = [score.components["timed_out"] for score in scores if isinstance(score, Score)]
    assert sum(late) == NUM_HANG
    assert isinstance(failure, ScoreFailure)
    assert "judge.kwargs.keys.tests" in failure.reason
    counted = metrics(served)
    assert counted["judge_timed_out_rows_total"] == NUM_HANG
    assert counted["judge_worker_restarts_total"] == 0
    assert counted["judge_failed_rows_total"] >= 1  # it was asked for again


def test_a_killed_server_leaves_none_of_its_sandbox(served: Service) -> None:
    """The last of the module: the server does not come back."""
    family = [p for p in served.processes() if "sandbox.zygote" in " ".join(p.cmdline())]
    assert family
    server = family[0].parent()
    assert server is not None
    server.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
