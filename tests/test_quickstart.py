"""The quickstart as a user runs it: to its end, and interrupted in the ways that a terminal and a system do.

All that it starts carries its folder in the environment, so what is left of it can be found whoever its
parent is by then.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rs_aligner.config import TrainRSConfig, load_config
from tests.config.conftest import compose
from tests.tiny import save_tiny_with_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT / "scripts" / "quickstart.sh")
IN_SFT, IN_RS = "step 1/", "step 2/12"


class Quickstart:
    """A running quickstart: its process, its output so far, its folder."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, out: Path) -> None:
        self.process, self.out, self._log = process, out, log

    @property
    def output(self) -> str:
        return self._log.read_text()

    def family(self) -> list[str]:
        """Command lines of all that was started for this folder and lives."""
        return [" ".join(process.cmdline()) for process in self.processes()]

    def end(self) -> None:
        for process in self.processes():
            process.kill()

    def wait_for(self, text: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.output:
            assert self.process.poll() is None, f"the quickstart ended:\n{self.output}"
            assert time.monotonic() < deadline, f"no {text!r} in {timeout} s:\n{self.output}"
            time.sleep(0.1)

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("ARITHMETIC") == str(self.out) or process.pid == self.process.pid
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except psutil.Error:
                continue


@contextmanager
def quickstart(folder: Path, *arguments: str) -> Iterator[Quickstart]:
    """Start it in a process group of its own; at the end nothing of it is left, whatever happens."""
    out = folder.resolve() / "out"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", SCRIPT, "--out", str(out), *arguments],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    started = Quickstart(process, folder / "log", out)
    try:
        yield started
    finally:
        started.end()
        process.wait(timeout=20)


def children_cpu() -> float:
    """Seconds that processes which this one has started, and which have ended, have computed."""
    used = os.times()
    return used.children_user + used.children_system


def read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quickstart_improves_the_policy_in_minutes_and_leaves_nothing_running(tmp_path):
    used_before = children_cpu()
    with quickstart(tmp_path, "--seed", "0") as started:
        assert started.process.wait(timeout=560) == 0, started.output
        assert started.family() == []
    table = started.output.partition("[5/5]")[2]

    rows = read(started.out / "rs" / "metrics.jsonl")
    before, after = rows[0]["validation/reward"], rows[-1]["validation/reward"]
    assert 0.20 <= before <= 0.60
    assert after - before >= 0.10
    num_held_out = len(read(started.out / "task" / "validation.jsonl"))
    assert num_held_out >= 1000
    for shown in (
        f"{num_held_out:,}",
        f"{before:.1%}",
        f"{after:.1%}",
        f"{100 * (after - before):+.1f} points",
    ):
        assert shown in table
    assert all(row["reward/kept_mean"] >= row["reward/mean"] for row in rows if row["step"] > 0)
    assert f"{rows[-1]['reward/mean']:.3f}" in table

    page = started.out / "rs" / "report.html"
    assert f"report: {page}" in started.output
    assert f"Yes: the held-out score rose by {after - before:.3g}." in page.read_text()
    assert re.search(r"\d+ min \d+ s", table)
    assert children_cpu() - used_before < 360  # seconds of one core, so that a busy machine fails nothing
    for name in re.findall(r"^  (\S+)  ", table.partition("the run's folder:")[2], re.MULTILINE):
        assert (started.out / "rs" / name).exists()


def test_what_the_quickstart_sets_for_vllm_is_taken_by_the_training(monkeypatch, tmp_path):
    lines = Path(SCRIPT).read_text().replace("$served", "8000")
    given = re.findall(r"model\.rs\.generation\.[\w.]+=[^\s\")]+", lines)
    assert len(given) == 3
    folder, model = tmp_path / "task", tmp_path / "sft" / "final"
    save_tiny_with_tokenizer(model)
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text('{"text": "1+1=", "answer": "2"}\n')
    monkeypatch.setenv("ARITHMETIC", str(tmp_path))
    assert load_config(compose("arithmetic", given), TrainRSConfig).model.rs.generation.engine == "vllm"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_vllm_every_rollout_comes_from_its_server_and_the_policy_improves(tmp_path, vllm_python):
    with quickstart(tmp_path, "--seed", "0", "--engine", "vllm") as started:
        assert started.process.wait(timeout=860) == 0, started.output
        assert started.family() == []
    rows = read(started.out / "rs" / "metrics.jsonl")
    assert rows[-1]["validation/reward"] - rows[0]["validation/reward"] >= 0.10
    assert all(row["rollouts/total"] == 256 * 8 and row["rollouts/kept"] > 0 for row in rows if row["step"])
    assert max(row["mismatch/p99"] for row in rows if row["step"]) < 0.01  # float32 here and there
    assert "rollouts ready at http://127.0.0.1:" in (started.out / "rollouts.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("moment", "send", "number"),
    [
        pytest.param(IN_RS, os.killpg, signal.SIGINT, id="Ctrl-C in the rejection sampling"),
        pytest.param(IN_SFT, os.kill, signal.SIGINT, id="SIGINT to the script alone"),
        pytest.param(IN_SFT, os.kill, signal.SIGTERM, id="SIGTERM to the script alone"),
    ],
)
def test_an_interrupted_quickstart_ends_all_that_it_started(
    tmp_path: Path, moment: str, send: Callable[[int, int], None], number: int
) -> None:
    with quickstart(tmp_path, "--seed", "1") as started:
        started.wait_for(moment, timeout=240)
        assert any("examples/train_" in command for command in started.family())
        assert (moment == IN_RS) == any("examples/serve_reward.py" in line for line in started.family())
        send(started.process.pid, number)
        assert started.process.wait(timeout=20) == 128 + number
        assert started.family() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_judge_that_ends_ends_the_quickstart_with_what_it_said(tmp_path: Path) -> None:
    with quickstart(tmp_path, "--seed", "1") as started:
        started.wait_for(IN_RS, timeout=240)
        [judge] = [one for one in started.processes() if "examples/serve_reward.py" in one.cmdline()]
        judge.kill()
        assert started.process.wait(timeout=20) == 1
        log = started.out / "judge.log"
        told = started.output.rpartition(f"quickstart: the judge has ended: {log}\n")[2]
        assert told.startswith("judge reward_model ready at http://127.0.0.1:")
        assert "the run goes on" not in told  # what the training says of its end comes before
        assert started.family() == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sed", "1"], "--sed is not known"),
        (["--seed"], "--seed needs a value"),
        (["--seed", "x"], "a whole number, not 'x'"),
        (["--out", "."], "is there already"),
        (["--engine", "sglang"], "should be auto or vllm, not 'sglang'"),
        (["--engine="], "--engine= is not known"),
    ],
)
@pytest.mark.timeout(30)
def test_what_the_quickstart_cannot_use_ends_it_at_once(tmp_path, arguments, reason):
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
