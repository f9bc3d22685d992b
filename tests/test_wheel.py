"""What `pip install` brings: an archive and a wheel are built, the wheel is installed, first steps are taken.

The wheel is built from the source archive, so that both are whole, and installed without what it needs, which
the environment finds where this suite has it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.first_run.readme import blocks

JUDGE = "def score(prompts, responses, metadata):\n    return [float(len(r)) for r in responses]\n"


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """What a command says; one that fails fails the test with it."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**plain, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive of what git would commit."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        is_packaged = name.startswith(("rs_aligner/", "examples/conf/")) or "/" not in name
        if is_packaged and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    make = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", make, out, cwd=source)
    [archive] = out.glob("*.tar.gz")
    build = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, archive)
    run(sys.executable, "-m", "pip", *build, cwd=out)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel, which sees this suite's packages."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    [site] = place.glob("lib/python*/site-packages")
    (site / "suite.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = ("install", "--no-deps", "--no-index", "--ignore-installed", wheel)
    run(place / "bin" / "python", "-m", "pip", *install, cwd=place)
    return place / "bin"


@pytest.mark.slow
def test_the_wheel_says_what_it_is_and_carries_configs_recipes_and_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith("/METADATA")]
        headers = HeaderParser().parsestr(archive.read(metadata).decode())
    for file in (ROOT / "examples" / "conf").rglob("*.yaml"):
        assert f"rs_aligner/conf/{file.relative_to(ROOT / 'examples' / 'conf').as_posix()}" in names
    for folder in ("generation/kernels", "report/assets", "report/templates"):
        for file in (ROOT / "rs_aligner" / folder).iterdir():
            if file.is_file():
                assert f"rs_aligner/{folder}/{file.name}" in names
    assert "rs_aligner/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "examples/", "benchmarks/"))]
    for key in ("Name", "Summary", "Author", "Keywords", "License-Expression", "Requires-Python"):
        assert headers[key], key
    assert headers["Description-Content-Type"] == "text/markdown"
    assert str(headers.get_payload()).startswith("# RS Aligner")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_steps_are_taken_from_an_empty_folder(
    installed: Path, tmp_path: Path, test_data: Path
) -> None:
    program, python = installed / "rs-aligner", installed / "python"
    where = run(python, "-c", "import rs_aligner; print(rs_aligner.__file__)", cwd=tmp_path)
    assert where.startswith(str(installed.parent))
    assert "No broken requirements" in run(python, "-m", "pip", "check", cwd=tmp_path)
    assert str(installed.parent) in run(program, "train", "--help", cwd=tmp_path)

    [steps] = [block for block in blocks("bash") if block.startswith("rs-aligner init")]
    init, train = [shlex.split(line)[1:] for line in steps.replace("\\\n", " ").splitlines()]
    for name in ("my_prompts", "my_held_out_prompts"):
        rows = [{"text": f"There was a cat number {i} in {name}."} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_judge.py").write_text(JUDGE)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "model").symlink_to((test_data / "stories260k").resolve())
    run(program, *init, cwd=tmp_path)
    short = "model.rs.length_params.max_length=4"
    assert "rollouts a step         32" in run(program, "plan", *train, short, cwd=tmp_path)
    assert "step 1/1" in run(program, *train, short, cwd=tmp_path)
    assert (tmp_path / "runs" / "mine" / "final" / "config.json").is_file()
