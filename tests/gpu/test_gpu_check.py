"""`scripts/gpu_check.sh` says at once that there is no GPU; and what it writes, with a stand-in for one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(180)
GOOD = "def test_good(): pass\n"
BAD = "def test_bad(): assert 1 == 2\n"
LEFT = "@pytest.mark.skipif(True, reason='needs two NVIDIA GPUs')\ndef test_left(): pass\n"
LARGE = "NVIDIA H100 80GB HBM3, 81559, 570.86"


@dataclass
class Machine:
    """A folder of commands, and what `gpu_check.sh` gives there."""

    folder: Path

    def has(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def has_cards(self, *cards: str) -> None:
        self.has("nvidia-smi", "#!/bin/sh\n" + "".join(f"echo '{card}'\n" for card in cards))

    def tests_are(self, *tests: str) -> None:
        folder = self.folder / "tests"
        folder.mkdir(exist_ok=True)
        (folder / "test_it.py").write_text("import pytest\npytestmark = pytest.mark.gpu\n" + "".join(tests))
        (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")

    @property
    def file(self) -> Path:
        return self.folder / "out" / "found.json"

    def start(self, *, path: str | None = None, **variables: str) -> subprocess.Popen[str]:
        self.has("python", f'#!/bin/sh\nexec {sys.executable} -W ignore -m tests.gpu.stand_in "$@"\n')
        environment = {
            **os.environ,
            "PATH": path or f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.folder / "bin" / "python"),
            "STAND_IN_TESTS": str(self.folder / "tests"),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        bash = shutil.which("bash")
        assert bash is not None
        return subprocess.Popen(
            [bash, str(ROOT / "scripts" / "gpu_check.sh"), str(self.file)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def check(self, **how: Any) -> tuple[int, str]:
        """Status, and what was said."""
        process = self.start(**how)
        try:
            said, _ = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
        return process.returncode, said

    def found(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.file.read_text())
        return read


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def without_driver(machine: Machine) -> dict[str, str]:
    """A machine of which nothing is known but what the script needs before it looks for a GPU."""
    (machine.folder / "bin").mkdir()
    for name in ("dirname", "realpath"):
        found = shutil.which(name)
        assert found is not None
        (machine.folder / "bin" / name).symlink_to(found)
    return {"path": str(machine.folder / "bin")}


def with_a_dead_driver(machine: Machine) -> dict[str, str]:
    machine.has(
        "nvidia-smi", "#!/bin/sh\necho 'NVIDIA-SMI has failed:'\necho 'no driver is running'\nexit 9\n"
    )
    return {}


def with_another_torch(machine: Machine) -> dict[str, str]:
    machine.has_cards(LARGE)
    return {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}


def without_python(machine: Machine) -> dict[str, str]:
    machine.has_cards(LARGE)
    return {"PYTHON": "no/python"}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (without_driver, "there is no NVIDIA GPU here, or no driver: nvidia-smi is missing"),
        (with_a_dead_driver, "nvidia-smi says: NVIDIA-SMI has failed: no driver is running"),
        (with_another_torch, f"nvidia-smi shows {LARGE}, but torch "),
        (without_python, "there is no no/python: run bash scripts/setup.sh, or set PYTHON="),
    ],
)
def test_a_machine_without_a_gpu_is_told_so_in_a_line_and_nothing_is_run(
    machine: Machine, made: Callable[[Machine], dict[str, str]], words: str
) -> None:
    status, said = machine.check(**made(machine))
    assert status == 2
    assert said.startswith("gpu_check: ")
    assert words in said
    assert said.count("\n") == 1
    assert not machine.file.exists()


@pytest.mark.slow
def test_the_file_has_the_machine_each_test_and_the_figures_of_each_benchmark(machine: Machine) -> None:
    machine.has_cards(LARGE, LARGE)
    machine.tests_are(GOOD, LEFT)
    status, said = machine.check()
    assert status == 0, said
    found = machine.found()
    assert found["ok"] is True
    assert found["cards"] == [{"name": "NVIDIA H100 80GB HBM3", "memory_mib": 81559}] * 2
    assert found["driver"] == "570.86"
    assert set(found["versions"]) >= {"python", "cuda", "nccl", "torch", "megatron-core", "flash-attn"}
    assert found["versions"]["torch"].startswith("2.")
    assert found["tests"]["counts"] == {"passed": 1, "skipped": 1}
    good, left = (found["tests"]["each"][f"test_it::{name}"] for name in ("test_good", "test_left"))
    assert good["outcome"] == "passed"
    assert good["seconds"] >= 0
    assert left["why"] == "needs two NVIDIA GPUs"
    for shape in ("1b", "8b"):
        one = found["benchmarks"][shape]
        assert one["outcome"] == "passed"
        assert one["figures"]["hf / ours"] > 0
        assert len(one["figures"]["seconds"]["ours"]) == 2
    assert found["seconds"] >= found["tests"]["seconds"] + sum(
        found["benchmarks"][shape]["seconds"] for shape in ("1b", "8b")
    )
    assert "gpu_check: tests: passed (1 passed, 1 skipped)" in said
    assert f"gpu_check: wrote {machine.file}" in said


@pytest.mark.slow
def test_what_fails_is_told_with_its_reason_and_by_the_status(machine: Machine) -> None:
    """A test, and a benchmark that finds no memory; what is too large for the card is left out."""
    machine.has_cards("NVIDIA A100-PCIE-40GB, 40960, 535.1")
    machine.tests_are(GOOD, BAD)
    status, said = machine.check(STAND_IN_FULL="1b")
    assert status == 1
    found = machine.found()
    assert found["ok"] is False
    assert found["tests"]["outcome"] == "failed"
    assert found["tests"]["counts"] == {"passed": 1, "failed": 1}
    assert "assert 1 == 2" in found["tests"]["each"]["test_it::test_bad"]["why"]
    failed = found["benchmarks"]["1b"]
    assert (failed["outcome"], failed["status"]) == ("failed", 1)
    assert failed["why"] == "torch.OutOfMemoryError: CUDA out of memory."
    assert found["benchmarks"]["8b"] == {"outcome": "left out", "why": "needs a card of 72000 MiB"}
    assert "gpu_check:   failed: test_it::test_bad" in said
    assert "gpu_check: 1b: failed, torch.OutOfMemoryError: CUDA out of memory." in said


@pytest.mark.slow
def test_no_test_that_ran_is_no_success(machine: Machine) -> None:
    machine.has_cards("NVIDIA T4, 15360, 535.1")
    machine.tests_are(LEFT)
    status, _ = machine.check()
    assert status == 1
    assert machine.found()["tests"]["why"] == "no test passed"


@pytest.mark.slow
def test_what_was_found_until_it_is_ended_is_written(machine: Machine, tmp_path: Path) -> None:
    machine.has_cards(LARGE)
    begun = tmp_path / "begun"
    machine.tests_are(
        GOOD, f"def test_long():\n    open({str(begun)!r}, 'w')\n    import time; time.sleep(170)\n"
    )
    process = machine.start()
    while not begun.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    found = machine.found()["tests"]
    assert found["outcome"] == "ended early"
    assert found["counts"] == {"passed": 1}
    assert found["each"].popitem()[0].endswith("test_it::test_good")
    outcomes = {shape: one["outcome"] for shape, one in machine.found()["benchmarks"].items()}
    assert outcomes == {"1b": "not run", "8b": "not run"}
