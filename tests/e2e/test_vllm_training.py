"""A training whose rollouts come from real vLLM servers: one is killed, one is frozen, one has old weights.

The run is that of `test_stories.py`, on the same function with heads for vLLM. Its trainer computes the
log-probability of every token that it trains on; were one of another version, `mismatch/p99` would tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rs_aligner.child import start_process
from tests.conftest import ROOT
from tests.e2e.launch import read_metrics
from tests.reward.rows import free_port
from tests.reward.service import service
from tests.vllm_server import STORIES, Running, serve_rollouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
AGREES = 1e-4  # of mismatch/p99, in nats: measured are 7e-6; a step's training moves it to above 0.1


class World:
    """A judge and two servers, which take weights from below `folder`."""

    def __init__(self, folder: Path, python: Path, data: Path, judge_port: int) -> None:
        self.folder, self.python, self.data, self.judge_port = folder, python, data, judge_port
        self.ports = free_port(), free_port()
        self._stack = contextlib.ExitStack()
        self.servers: list[Running] = [self.serve(number) for number in range(2)]

    def serve(self, number: int) -> Running:
        """Start a server on its port, and wait until it is ready."""
        where = self.folder / f"server_{number}"
        where.mkdir(exist_ok=True)
        settings = f"weights_root={self.folder}", "vllm.max_length=512"
        server = serve_rollouts(self.python, self.data / STORIES, where, *settings, port=self.ports[number])
        return self._stack.enter_context(server)

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal to a server's vLLM, all of it."""
        for process in psutil.Process(self.servers[number].process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(what)

    def train(self, name: str, *overrides: str) -> subprocess.Popen[bytes]:
        """Start a run of `conf/stories.yaml` with these servers."""
        endpoints = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        command = [sys.executable, "examples/train_rs.py", "--config-name=stories"]
        command += [
            f"pretrained_checkpoint.restore_from_path={self.data / STORIES}",
            f"exp_manager.explicit_log_dir={self.folder / name}",
            f"remote_rm.reward_model.port={self.judge_port}",
            "model.rs.generation.engine=vllm",
            f"model.rs.generation.endpoints=[{endpoints}]",
            "model.rs.generation.servers.request_timeout=30",
            "model.rs.generation.servers.max_in_flight=8",
        ]
        with (self.folder / f"{name}.log").open("a") as log:
            env = {**os.environ, "RS_ALIGNER_TEST_DATA": str(self.data), "OMP_NUM_THREADS": "1"}
            return start_process(
                [*command, *overrides], stdout=log, stderr=subprocess.STDOUT, env=env, cwd=ROOT
            )

    def log(self, name: str) -> str:
        """What a run has said."""
        return (self.folder / f"{name}.log").read_text()

    def open_rows(self, name: str, step: int) -> list[str]:
        """The scored rollouts of a step that is not over."""
        found = (self.folder / name / "rollouts").glob(f"step_{step:06d}.open/*.jsonl")
        return [line for path in found for line in path.read_text().splitlines()]

    def rows(self, name: str, step: int) -> list[dict[str, Any]]:
        """The ledger of a step."""
        path = self.folder / name / "rollouts" / f"step_{step:06d}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def close(self) -> None:
        self._stack.close()


def until(holds: Callable[[], object], run: subprocess.Popen[bytes], world: World, name: str) -> None:
    """Wait for something to come true while a run goes on."""
    deadline = time.monotonic() + 300
    while not holds():
        assert run.poll() is None, world.log(name)
        assert time.monotonic() < deadline, world.log(name)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def world(vllm_python: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    with service(folder, port, "judge.name=sentiment") as judge:
        made = World(folder, vllm_python, test_data, port)
        try:
            judge.wait_until_ready()
            yield made
        finally:
            made.close()


def is_whole(world: World, name: str, step: int, number: int, versions: set[int]) -> bool:
    """Whether a step has each of its rollouts once, all of these versions."""
    rows = world.rows(name, step)
    times = Counter((row["group"], row["index"]) for row in rows)
    return (
        len(rows) == len(times) == number
        and {row["policy_version"] for row in rows} == versions
        and all(row["failure"] is None for row in rows)
    )


def test_two_steps_raise_the_score_while_servers_die_freeze_and_have_old_weights(world: World) -> None:
    def until_said(what: str) -> None:
        until(lambda: what in world.log("faults"), run, world, "faults")

    run = world.train("faults")
    until(lambda: len(world.open_rows("faults", 1)) > 200, run, world, "faults")
    world.signal(1, signal.SIGKILL)
    until_said(f"{world.ports[1]} is left out")
    world.signal(0, signal.SIGSTOP)  # until past the deadline, however soon the other one is back
    try:
        world.servers[1] = world.serve(1)  # with the weights that it was started with at first
        until_said(f"{world.ports[1]} samples again")
        until_said(f"{world.ports[0]} is left out until it samples again: no answer within")
    finally:
        world.signal(0, signal.SIGCONT)
    until(lambda: len(world.open_rows("faults", 2)) > 100, run, world, "faults")
    old = world.folder / "faults" / "weights" / "step_000000"
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(old)}}
    assert world.servers[1].ask("POST", "/collective_rpc", body).status == 200
    assert run.wait(300) == 0, world.log("faults")
    rows = read_metrics(world.folder / "faults")
    gain = rows[2]["validation/reward"] - rows[0]["validation/reward"]
    print(f"held-out score {rows[0]['validation/reward']:.3f} -> {rows[2]['validation/reward']:.3f}")
    assert gain >= 0.30
    for step in (1, 2):
        assert is_whole(world, "faults", step, 128 * 8, {step - 1})
        assert rows[step]["mismatch/p99"] < AGREES
    assert "it has not the weights that it was sent any more" in world.log("faults")
    assert not (world.folder / "faults" / "weights").exists()


SMALL = [
    "model.rs.num_rollout_samples=32",
    "trainer.rs.val_check_interval=null",
    "trainer.rs.save_interval=1",
]


def test_a_run_that_is_killed_in_a_step_goes_on_with_what_was_scored(world: World) -> None:
    run = world.train("killed", *SMALL)
    until(lambda: len(world.open_rows("killed", 2)) > 60, run, world, "killed")
    run.kill()
    run.wait()
    there = [json.loads(line) for line in world.open_rows("killed", 2)]
    run = world.train("killed", *SMALL)
    assert run.wait(300) == 0, world.log("killed")
    assert f"step 000002: {len(there)} rollouts that were scored by an earlier start" in world.log("killed")
    rows = {(row["group"], row["index"]): row for row in world.rows("killed", 2)}
    for one in there:
        assert rows[one["group"], one["index"]]["token_ids"] == one["token_ids"]
    assert is_whole(world, "killed", 2, 32 * 8, {1})
    assert read_metrics(world.folder / "killed")[-1]["mismatch/p99"] < AGREES


def test_servers_that_get_the_weights_every_other_step_sample_with_what_they_have(world: World) -> None:
    lags = ["model.rs.generation.sync_interval=2", "model.rs.generation.max_version_lag=1"]
    run = world.train("lags", *SMALL, *lags, "trainer.rs.max_steps=3")
    assert run.wait(300) == 0, world.log("lags")
    for step, version in ((1, 0), (2, 0), (3, 2)):
        assert is_whole(world, "lags", step, 32 * 8, {version})
    rows = read_metrics(world.folder / "lags")
    assert [row["rejected/of_too_old_version"] for row in rows] == [0, 0, 0]
    assert ["mismatch/mean" in row for row in rows] == [True, False, True]
    assert [row["time/weights"] > 0.01 for row in rows] == [True, False, True]
