"""Lets the zoo loose on a judge, as whoever runs this, and tells what came of it.

    python zoo_run.py NAMESPACES [NAME ...]     # auto or never; prints a line of JSON

Needs nothing but the standard library, so that a user who may read little can run it. After each program it
looks for processes that are left, for changes of the files that matter, and lets an honest program pass.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
sys.path[:0] = [str(ROOT)]

from rs_aligner.reward.judges.code import CodeJudge  # noqa: E402  # after the path
from tests.reward.judges.code.zoo import ASSERTIONS, RIGHT, ZOO, Mischief  # noqa: E402  # after the path

_IS_ARM = platform.machine() == "aarch64"
_NUMBERS = {
    "FORK": (57, 1079),  # ARM has none
    "CLONE": (56, 220),
    "PTRACE": (101, 117),
    "SHMGET": (29, 194),
    "SEMGET": (64, 190),
    "ADD_KEY": (248, 217),
}


class Watch:
    """What may not change."""

    def __init__(self, judge: CodeJudge, folder: Path, server: socket.socket) -> None:
        self._judge, self._folder, self._server = judge, folder, server
        self.processes = set(self._processes())
        self.files = self._files()
        self.limits = self._limits()

    def problems(self) -> Iterator[str]:
        """What is other than before."""
        left = [number for number in self._processes() if number not in self.processes]
        if left:
            yield f"processes are left: {left}"
        if self._limits() != self.limits:
            yield f"what binds the judge changed: {self._limits()}"
        now = self._files()
        if now != self.files:
            changed = {name for name in {*now, *self.files} if now.get(name) != self.files.get(name)}
            yield f"files changed: {sorted(changed)[:10]}"
            self.files = now
        try:
            self._server.accept()
            yield "somebody connected"
        except BlockingIOError:
            pass

    def _processes(self) -> Iterator[int]:
        """Those that come from here, and those of the users that programs run as."""
        parents, users = {}, {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
                    users[int(entry)] = os.stat(f"/proc/{entry}").st_uid
                    parents[int(entry)] = int(stat[1])
                except OSError:
                    continue
        first = self._judge._box.user
        own = range(first, first + 256) if first is not None else [os.getuid()]
        for number, user in users.items():
            ancestor: int | None = number
            while ancestor not in (None, 0, os.getpid()):
                ancestor = parents.get(ancestor)  # type: ignore[arg-type]  # not None here
            is_ours = ancestor == os.getpid() or (user in own and user != 0)
            if is_ours and number != os.getpid():
                yield number

    def _limits(self) -> list[Any]:
        """Of this process, which is the judge's."""
        names = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
        priority = os.getpriority(os.PRIO_PROCESS, 0)
        return [*map(resource.getrlimit, names), priority, os.sched_getaffinity(0)]

    def _files(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for folder in (ROOT / "rs_aligner" / "reward", ROOT / "rs_aligner" / "sandbox", self._folder):
            for path in folder.rglob("*"):
                if "__pycache__" not in path.parts:
                    found[str(path)] = _state(path)
        for folder in (Path.home(), Path("/"), Path("/etc"), Path(os.__file__).parent):
            if os.access(folder, os.R_OK | os.X_OK):
                found[str(folder)] = sorted(os.listdir(folder))
        for folder in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
            if folder.is_dir():
                found[str(folder)] = sorted(name for name in os.listdir(folder) if "rs_zoo" in name)
        for kind in ("shm", "sem", "msg"):
            table = Path("/proc/sysvipc", kind)
            if table.exists():
                found[str(table)] = [line.split()[:2] for line in table.read_text().splitlines()[1:]]
        return found


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.lstat()
    except OSError:
        return None
    return (stat.st_mode, stat.st_uid, stat.st_size, stat.st_mtime_ns if path.is_file() else 0)


def let_loose(namespaces: str, python: str | None, names: list[str]) -> dict[str, Any]:
    """Run programs of the zoo; what went wrong, by name, and what the judge says holds here."""
    os.environ["RS_ZOO_SECRET"] = "6 10"
    with tempfile.TemporaryDirectory() as made, socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        folder = Path(made)
        folder.chmod(0o755)
        secret = folder / "answers"
        secret.write_text("6 10")
        secret.chmod(0o644)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        listener.setblocking(False)
        judge = CodeJudge(namespaces=namespaces, python=python, workers=2, memory=256)  # type: ignore[arg-type]  # a text
        values = {
            "JUDGE": os.getpid(),
            "PORT": server.getsockname()[1],
            "SECRET": secret,
            "SECRETS": folder,
            "SOCKET": folder / "socket",
            "PACKAGE": ROOT / "rs_aligner" / "reward" / "judges" / "code",
            "HOME": Path.home(),
            **{name: numbers[_IS_ARM] for name, numbers in _NUMBERS.items()},
        }
        found: dict[str, list[str]] = {}
        try:
            watch = Watch(judge, folder, server)
            for name in names or ZOO:
                problems = [*_run(judge, ZOO[name], values), *watch.problems()]
                if problems:
                    found[name] = problems
            try:
                listener.recv(100)
                found["socket"] = ["somebody wrote to it"]
            except BlockingIOError:
                pass
            restarts = judge.counters["worker_restarts"]
        finally:
            judge.close()
            listener.close()
        left = list(watch._processes())
    return {
        "problems": found,
        "programs": len(names or ZOO),
        "remarks": judge.remarks,
        "restarts": restarts,
        "left": left,
        "uid": os.getuid(),
        "is_private": judge._box.is_private,
        "has_rules": judge._box.has_rules,
    }


def _run(judge: CodeJudge, mischief: Mischief, values: dict[str, Any]) -> Iterator[str]:
    def filled(code: str) -> str:
        for key, value in values.items():
            code = code.replace(f"@{key}@", str(value))
        return code

    judge._seconds = 0.5
    for _ in range(mischief.runs):
        (score,) = judge.score_texts([""], [filled(mischief.program)], [mischief.row])
        if not isinstance(score, dict) or score["reward"] != 0.0:
            yield f"its score is {score}"
    judge._seconds = 60.0  # however busy the machine is
    programs = [filled(mischief.twins_program)] if mischief.twin else []
    for program in [*programs, RIGHT]:
        (score,) = judge.score_texts([""], [program], [ASSERTIONS])
        if not isinstance(score, dict) or score["reward"] != 1.0:
            yield f"{'an honest program' if program is RIGHT else 'its twin'} has {score}"


if __name__ == "__main__":
    print(json.dumps(let_loose(sys.argv[1], os.environ.get("RS_ZOO_PYTHON"), sys.argv[2:])))
