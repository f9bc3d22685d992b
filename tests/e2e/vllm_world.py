"""Trainings of `conf/stories.yaml` with real vLLM servers and a real judge: what their tests share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from rs_aligner.child import start_process
from tests.conftest import ROOT
from tests.e2e.launch import read_metrics
from tests.ports import free_port
from tests.reward.service import service
from tests.vllm_server import STORIES, Running, serve_rollouts

AGREES = (
    1e-4  # of mismatch/p99, in nats, in float32: measured are 7e-6; a step's training moves it to above 0.1
)
SMALL = [
    "model.rs.num_rollout_samples=32",
    "trainer.rs.val_check_interval=null",
    "trainer.rs.save_interval=1",
]


class World:
    """A judge and servers, which take weights from below `folder`.

    Args:
        folder: for runs and logs.
        python: the fixture `vllm_python`.
        data: the fixture `test_data`.
        judge_port: of the judge.
        model: that is served and trained, a Hugging Face folder; None for `STORIES`.
        servers: the settings of each server.
        token: that they want to be shown.
    """

    def __init__(
        self,
        folder: Path,
        python: Path,
        data: Path,
        judge_port: int,
        servers: Sequence[Sequence[str]],
        *,
        model: Path | None = None,
        token: str | None = None,
    ) -> None:
        self.folder, self.python, self.data, self.judge_port = folder, python, data, judge_port
        self.model = model or data / STORIES
        self.settings, self.token = servers, token
        self.ports = [free_port() for _ in servers]
        self._stack = contextlib.ExitStack()
        self.servers: list[Running] = []
        try:
            for number in range(len(servers)):
                self.servers.append(self.serve(number))
        except BaseException:
            self.close()
            raise

    def serve(self, number: int) -> Running:
        """Start a server on its port, and wait until it is ready."""
        where = self.folder / f"server_{number}"
        where.mkdir(exist_ok=True)
        settings = [f"weights_root={self.folder}", *self.settings[number]]
        env = {} if self.token is None else {"RS_ALIGNER_ROLLOUTS_TOKEN": self.token}
        server = serve_rollouts(self.python, self.model, where, *settings, port=self.ports[number], env=env)
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
            f"pretrained_checkpoint.restore_from_path={self.model}",
            f"exp_manager.explicit_log_dir={self.folder / name}",
            f"remote_rm.reward_model.port={self.judge_port}",
            "model.rs.generation.engine=vllm",
            f"model.rs.generation.endpoints=[{endpoints}]",
            "model.rs.generation.servers.startup_timeout=60",
            "model.rs.generation.servers.request_timeout=30",
            "model.rs.generation.servers.max_in_flight=8",
        ]
        env = {**os.environ, "RS_ALIGNER_TEST_DATA": str(self.data), "OMP_NUM_THREADS": "1"}
        if self.token is not None:
            env["RS_ALIGNER_ROLLOUTS_TOKEN"] = self.token
        with (self.folder / f"{name}.log").open("a") as log:
            return start_process(
                [*command, *overrides], stdout=log, stderr=subprocess.STDOUT, env=env, cwd=ROOT
            )

    def trained(self, name: str, *overrides: str) -> list[dict[str, Any]]:
        """Run it to its end; returns its metrics."""
        return self.ended(self.train(name, *overrides), name)

    def ended(self, run: subprocess.Popen[bytes], name: str) -> list[dict[str, Any]]:
        """Wait for a run's good end; returns its metrics."""
        assert run.wait(300) == 0, self.log(name)
        return read_metrics(self.folder / name)

    def refused(self, name: str, *overrides: str) -> str:
        """Run what cannot go well from its start; returns the one line that says so."""
        assert self.train(name, *overrides).wait(300) == 2, self.log(name)
        [line] = [line for line in self.log(name).splitlines() if line.startswith("error: ")]
        return line

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
        return [json.loads(line) for line in path.read_bytes().splitlines()]  # of text also at U+0085

    def is_whole(self, name: str, step: int, number: int, versions: set[int]) -> bool:
        """Whether a step has each of its rollouts once, all of these versions."""
        rows = self.rows(name, step)
        times = Counter((row["group"], row["index"]) for row in rows)
        return (
            len(rows) == len(times) == number
            and {row["policy_version"] for row in rows} == versions
            and all(row["failure"] is None for row in rows)
        )

    def until(self, holds: Callable[[], object], run: subprocess.Popen[bytes], name: str) -> None:
        """Wait for something to come true while a run goes on."""
        deadline = time.monotonic() + 300
        while not holds():
            assert run.poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)

    def until_said(self, what: str, run: subprocess.Popen[bytes], name: str) -> None:
        """Wait until the run's log has this."""
        self.until(lambda: what in self.log(name), run, name)

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def world_of(
    folder: Path, python: Path, data: Path, *servers: Sequence[str], **given: Any
) -> Iterator[World]:
    """A world with servers of these settings and a judge, all of them stopped whatever happens."""
    port = free_port()
    with service(folder, port, "judge.name=sentiment") as judge:
        made = World(folder, python, data, port, servers, **given)
        try:
            judge.wait_until_ready()
            yield made
        finally:
            made.close()
