"""A mixture whose experts two ranks share, killed in mid-step: it goes on, on as many ranks and on one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.crash.scene import Scene, scene
from tests.e2e.launch import read_metrics
from tests.tiny import balanced, save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SHARED = ("trainer.devices=2", "model.expert_model_parallel_size=2")
ATTEMPTS = 5
ALONE = ("trainer.devices=1", "model.expert_model_parallel_size=1")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("experts")
    policy = balanced(save_tiny_with_tokenizer(folder / "plain", family="mixtral"), folder / "mixture")
    more = (
        f"pretrained_checkpoint.restore_from_path={policy}",
        *("trainer.rs.max_steps=3", "trainer.rs.save_interval=2", "trainer.timeout_minutes=2"),
    )
    with scene(folder, "pool", *more, *SHARED) as found:
        yield found


def samples_its_third_step(shared: Scene, run: Path) -> bool:
    """Wait until the step is open and some of it is scored; False where that was missed."""
    rollouts = run / "rollouts"
    deadline = time.monotonic() + 200
    while not (rollouts / "step_000003.jsonl").exists():
        with contextlib.suppress(FileNotFoundError):  # the step is over
            if any(path.stat().st_size for path in (rollouts / "step_000003.open").glob("*.jsonl")):
                return True
        assert time.monotonic() < deadline, shared.said(run)
        time.sleep(0.001)
    return False


@pytest.fixture(scope="module")
def killed(shared: Scene) -> Path:
    """A run of which a rank was killed while it sampled its third step, behind the second's checkpoint.

    That takes 10 ms, which a busy machine may miss: then another run is started.
    """
    for number in range(ATTEMPTS):
        run = shared.folder / f"killed_{number}"
        pid = shared.start(run)
        if samples_its_third_step(shared, run):
            break
        assert shared.runs.wait(pid) == 0, shared.said(run)
    else:
        pytest.fail(f"{ATTEMPTS} runs were never seen to sample their third step")
    os.kill(psutil.Process(pid).children()[-1].pid, signal.SIGKILL)
    assert shared.runs.wait(pid) != 0
    shared.gone(pid)
    assert read_metrics(run)[-1]["step"] == 2
    assert (run / "checkpoints" / "step_000002").is_dir()
    return run


def test_the_run_goes_on_to_the_same_bits(shared: Scene, killed: Path, tmp_path: Path) -> None:
    shared.goes_on(shutil.copytree(killed, tmp_path / "run"))


def test_one_rank_goes_on_with_all_the_experts(shared: Scene, killed: Path, tmp_path: Path) -> None:
    """To the same figures but for rounding."""
    run = shutil.copytree(killed, tmp_path / "run")
    assert shared.attempt(run, *ALONE) == 0, shared.said(run)
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(run)]
    assert [set(row) for row in rows] == [set(row) for row in shared.whole.metrics]
    for row, whole in zip(rows, shared.whole.metrics, strict=True):
        assert row == pytest.approx(whole, rel=1e-4, abs=1e-6)
