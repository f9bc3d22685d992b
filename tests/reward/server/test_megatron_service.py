"""A Megatron reward model served by PyTriton on two ranks: both modes, a rank that dies, and the end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rs_aligner.config import EndpointConfig, RemoteRMConfig
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.rollout import Prompt, Rollout, Score
from tests.ports import free_port
from tests.reward.reward_models import (
    PROMPTS,
    RESPONSES,
    rewards_by_transformers,
    save_reward_model,
    token_rows,
)
from tests.reward.service import service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    return rewards_by_transformers(folder)


@pytest.mark.parametrize("layout", ["tensor_model_parallel_size", "data_parallel_size"])
def test_two_ranks_serve_and_end_with_the_server(
    folder: Path, tmp_path: Path, expected: list[float], layout: str
) -> None:
    kwargs = f"judge.kwargs={{folder: {folder}, {layout}: 2, accelerator: cpu, threads: 1}}"
    port = free_port()
    with service(tmp_path, port, "judge.name=megatron_reward_model", kwargs) as running:
        running.wait_until_ready(timeout=240)
        family = running.processes()
        ranks = [process for process in family if "score_ranks" in " ".join(process.cmdline())]
        assert len(ranks) == 2
        assert ask(folder, port, "text") == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert ask(folder, port, "tokens") == pytest.approx(expected, rel=1e-4, abs=1e-5)
        ranks[1].kill()
        assert ask(folder, port, "text") == pytest.approx(expected, rel=1e-4, abs=1e-5)
        family += running.processes()
        began = time.monotonic()
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.process.wait(timeout=20) == 0
        assert time.monotonic() - began < 10
        _, alive = psutil.wait_procs(family, timeout=3)
        assert alive == []
        assert "Traceback" not in running.output
        assert list(running.scratch.iterdir()) == []


def test_ranks_leave_when_the_server_is_killed(folder: Path, tmp_path: Path) -> None:
    kwargs = f"judge.kwargs={{folder: {folder}, accelerator: cpu, threads: 1}}"
    with service(tmp_path, free_port(), "judge.name=megatron_reward_model", kwargs) as running:
        running.wait_until_ready(timeout=240)
        (rank,) = [p for p in running.processes() if "score_ranks" in " ".join(p.cmdline())]
        running.process.kill()
        deadline = time.monotonic() + 20
        while rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the rank lives on"
            time.sleep(0.1)


def ask(folder: Path, port: int, mode: Any) -> list[float]:
    """The rows' rewards by our client."""
    remote = RemoteRMConfig(
        reward_model=EndpointConfig(ip="127.0.0.1", port=port), mode=mode, request_timeout=60
    )
    with RemoteGPTRMClient(remote) as client:
        futures = []
        for place, ids in enumerate(token_rows(folder)):
            prompt = Prompt(str(place), PROMPTS[place], tuple(ids[:1]), {})
            rollout = Rollout(place, 0, tuple(ids[1:]), RESPONSES[place], "stop")
            futures.append(client.submit(prompt, rollout))
        client.flush()
        results = [future.result(timeout=60) for future in futures]
    assert all(isinstance(result, Score) for result in results), results
    return [result.reward for result in results if isinstance(result, Score)]
