"""From an empty folder and a fresh environment to a report in the browser: how long each command takes.

    python benchmarks/cold_install.py [--model FOLDER] [--constraint requirements/cpu.txt] [--cached]
                                      [--out results.json]

What a stranger would do: make an environment, build and install the wheel with all that it needs, let
`rs-aligner init` write a config, train by it, open the page. The model is stories260k of the test data unless
another is named, prompts and judge are made up. Wheels come from wherever pip is set up to find them; without
`--cached` pip's cache is not used. Seconds on the clock depend on the network and on what else the machine
does, CPU seconds (user and system, of the command and what it starts) much less.

The page is opened by the Chromium of the system, where this interpreter has Playwright; otherwise that line
is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JUDGE = """
def score(prompts, responses, metadata):
    return [response.count("happy") for response in responses]
"""
SUBJECTS = ("cat", "dog", "bird", "girl", "boy", "fish", "king", "frog")


@dataclass(frozen=True)
class Timed:
    """A command and what it took.

    Attributes:
        what: it did.
        seconds: on the clock.
        cpu_seconds: of it and all that it started.
    """

    what: str
    seconds: float
    cpu_seconds: float

    def __str__(self) -> str:
        return f"{self.what:<34} {self.seconds:7.1f} s  {self.cpu_seconds:7.1f} CPU s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How long the first steps take, from nothing")
    data = Path(os.environ.get("RS_ALIGNER_TEST_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--model", type=Path, default=data / "stories260k")
    parser.add_argument("--constraint", type=Path, default=ROOT / "requirements" / "cpu.txt")
    parser.add_argument("--cached", action="store_true", help="let pip use its cache")
    parser.add_argument("--out", type=Path)
    how = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cold_") as place:
        found = install_and_train(Path(place), how.model.resolve(), how.constraint.resolve(), how.cached)
        found["commands"] = [asdict(one) for one in found["commands"]]
        if how.out:  # before the folder is removed, which takes its time
            how.out.write_text(json.dumps({"load": os.getloadavg(), **found}, indent=1) + "\n")


def install_and_train(place: Path, model: Path, constraint: Path, cached: bool) -> dict:
    """Every step in an empty folder.

    Raises:
        RuntimeError: a command failed; with what it said.
    """
    env, dist, mine = place / "env", place / "dist", place / "mine"
    pip = (env / "bin" / "python", "-m", "pip", *(() if cached else ("--no-cache-dir",)))
    program = env / "bin" / "rs-aligner"
    _source(place / "source")
    _bring(mine)
    flags = ("--model", model, "--prompts", "prompts.jsonl", "--held-out", "held_out.jsonl")
    commands = []

    def run(what: str, *command: str | Path) -> None:
        commands.append(_timed(what, lambda: _run(command, mine)))
        print(commands[-1], flush=True)

    run("make an environment", sys.executable, "-m", "venv", env)
    run("build the wheel", *pip, "wheel", "--no-deps", "--wheel-dir", dist, place / "source")
    [wheel] = dist.glob("*.whl")
    run("pip install WHEEL", *pip, "install", "--constraint", constraint, wheel)
    run("rs-aligner init", program, "init", *flags, "--judge", "judge.py:score", "--yes")
    run("rs-aligner train", program, "train", "--config-dir", ".", "--config-name", "mine")
    page = mine / "runs" / "mine" / "report.html"
    if not page.is_file():
        raise RuntimeError(f"there is no {page}")
    commands += _open(page)
    size = sum(file.stat().st_size for file in env.rglob("*") if file.is_file() and not file.is_symlink())
    print(f"{'the environment':<34} {size / 1e9:7.1f} GB")
    return {"commands": commands, "bytes": size, "cached": cached, "wheel_bytes": wheel.stat().st_size}


def _source(folder: Path) -> None:
    """What is committed, so that nothing that lies about in the checkout gets into the wheel."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive.stdout, check=True)


def _bring(folder: Path) -> None:
    """Prompts and a judge, as a user brings them."""
    folder.mkdir()
    for name, end in (("prompts", "was"), ("held_out", "had")):
        rows = [{"text": f"Once upon a time, a little {subject} {end}"} for subject in SUBJECTS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(JUDGE)


def _run(command: Sequence[str | Path], place: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*map(str, command)],
        cwd=place,
        env=plain,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")


def _open(page: Path) -> list[Timed]:
    """Open the page in a browser until its first answers are shown."""
    found = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        print("the page was not opened: there is no Chromium, or no Playwright")
        return []

    def look() -> None:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
            opened = browser.new_page()
            opened.goto(page.as_uri())
            opened.locator("h1").first.wait_for()
            browser.close()

    timed = _timed("start a browser, open report.html", look)
    print(timed, flush=True)
    return [timed]


def _timed(what: str, do: Callable[[], None]) -> Timed:
    began, used = time.monotonic(), _cpu_of_children()
    do()
    return Timed(what, round(time.monotonic() - began, 1), round(_cpu_of_children() - used, 1))


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
