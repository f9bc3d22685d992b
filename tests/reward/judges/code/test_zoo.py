"""No program of the zoo passes that should not, outlives its end or changes a file, as root and as a user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.reward.judges.code.machine import as_nobody, python_of_all
from tests.reward.judges.code.zoo import ZOO

pytestmark = pytest.mark.timeout(400)

SCRIPT = ROOT / "tests" / "reward" / "judges" / "code" / "zoo_run.py"
# What takes no time limit to end, of each kind.
QUICK = [
    *("fork_bomb", "daemon", "subprocess", "fork_by_number", "another_processors_calls", "memory_at_once"),
    *("fills_the_disk", "writes_to_the_judge", "reads_a_file_with_the_answers", "reads_the_environment"),
    *("reads_the_judges_environment", "remembers_in_a_file", "kills_everybody", "network", "shared_memory"),
    *("exits_in_the_call", "leaves_at_import", "equal_to_everything", "plays_a_text", "helpers_of_the_tests"),
    *(
        "claims_everywhere",
        "claims_in_the_calls",
        "prints_what_is_expected",
        "right_but_failed",
        "no_program",
    ),
]


def loose(who: str, namespaces: str, *names: str) -> dict[str, Any]:
    """Run the zoo in a process of its own, which some of it tries to end."""
    python = python_of_all()
    if who == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    if python is None:
        if who == "user" or namespaces == "never":
            pytest.skip("needs a Python 3.11, and this repository, where every user can read them")
        python = sys.executable
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "RS_ZOO_PYTHON": python}
    done = subprocess.run(
        [python, str(SCRIPT), namespaces, *names],
        env=environment,
        check=False,
        capture_output=True,
        timeout=300,
        **(as_nobody() if who == "user" else {}),
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("namespaces", ["auto", "never"])
@pytest.mark.parametrize("who", ["root", "user"])
def test_no_program_passes_outlives_its_end_or_changes_a_file(who: str, namespaces: str) -> None:
    found = loose(who, namespaces)
    assert found["problems"] == {}
    assert found["left"] == []
    assert found["restarts"] == 0, "something ended what runs the programs"
    assert found["programs"] == len(ZOO)
    assert (found["uid"] == 0) == (who == "root")
    assert not (namespaces == "never" and found["is_private"])
    own_users = any("as users that nobody else has" in line for line in found["remarks"])
    assert own_users == (who == "root"), found["remarks"]


@pytest.mark.parametrize("who", ["root", "user"])
def test_no_program_of_some_does(who: str) -> None:
    found = loose(who, "auto", *QUICK)
    assert found["problems"] == {}
    assert found["left"] == []


def test_the_zoo_has_forty_programs_and_more() -> None:
    assert len(ZOO) >= 40
    assert set(QUICK) <= set(ZOO)


@pytest.mark.parametrize("name", ["network", "fork_bomb", "reads_a_file_with_the_answers"])
def test_the_zoo_is_seen_at_what_it_does_where_nothing_holds_it(name: str) -> None:
    """The same programs without a jail do what they are there for: it is the jail that keeps them."""
    import socket
    import tempfile
    from pathlib import Path

    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "answers"
        secret.write_text("6 10")
        code = ZOO[name].program.replace("@PORT@", str(server.getsockname()[1]))
        code = code.replace("@SECRET@", str(secret))
        code = code.replace("while True: os.fork()", "if os.fork() == 0: os._exit(0)")
        done = subprocess.run(
            [sys.executable, "-c", f"{code}\nprint(double(3))"], capture_output=True, timeout=60, check=True
        )
        assert done.stdout == (b"6\n" if "answers" in name else b"-1\n")
        if name == "network":
            server.settimeout(10)
            server.accept()[0].close()
