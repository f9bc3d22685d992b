"""What several test modules share."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from rs_aligner.model.runtime import Runtime
    from tests.browser.chromium import Opener
    from tests.vllm_server import Running

ROOT = Path(__file__).resolve().parents[1]

# How long examples take, or their making, says nothing: machines are shared. pytest-timeout ends what hangs.
SLOW_IS_FINE = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("shared machine", deadline=None, suppress_health_check=SLOW_IS_FINE)
hypothesis.settings.load_profile("shared machine")


gc.disable()  # modules and tests stay: nothing that is made before the first test is garbage


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let no later search for garbage go through what stays; it took a twentieth of all tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How `--dist loadfile` shares the files: see `tests/scheduling.py`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.scheduling import LongestFirst

    return LongestFirst(config, log)


def does_without(what: str, script: str = "ci_packages.sh") -> NoReturn:
    """End a test that misses something of the system: skipped, but failed on CI, which installs it."""
    said = f"needs {what}, which scripts/{script} installs"
    if os.environ.get("CI") == "true":
        pytest.fail(said)
    pytest.skip(said)


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_disks() -> Iterator[None]:
    """This process syncs nothing: its machine keeps its power. Tests of syncs look at the calls.

    A disk that others use takes 10 ms and more for each, and a run in a fake world makes dozens.
    """

    def fsync(file: int | IO[bytes]) -> None:
        os.fstat(file if isinstance(file, int) else file.fileno())  # fails for what is no open file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C compiler for the kernels of the CPU's decoder; tests that need it end where there is none."""
    found = shutil.which("cc") or shutil.which("gcc")
    return found or does_without("a C compiler")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real models, prompts and problems; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RS_ALIGNER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real test data: RS_ALIGNER_TEST_DATA points to {folder}, which is not there")
    return folder.resolve()


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python of vLLM's environment (`tests/vllm_server.py` starts a server in it)."""
    from rs_aligner.rollout_server.environment import find_python

    try:
        return find_python()
    except ValueError as missing:
        does_without(f"a real vLLM ({missing})", "setup_vllm.sh")


@pytest.fixture(scope="session")
def stories_server(
    vllm_python: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A real vLLM that serves `STORIES`; only ever asked for tokens, so that all tests may share it.

    It bars `BARRED` where it is asked to.
    """
    from tests.vllm_server import BARRED, STORIES, barring, vllm_server

    switches, env = barring(*BARRED)
    folder = tmp_path_factory.mktemp("vllm")
    with vllm_server(vllm_python, test_data / STORIES, folder, *switches, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def rt() -> Iterator[Runtime]:
    """This process as a run of one rank."""
    from rs_aligner.model import runtime  # slow, and most tests do without

    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:
        yield rt


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, one for all tests of a process."""
    from tests.browser.chromium import chromium

    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """Opens pages, which are closed at the end of the test."""
    from tests.browser.chromium import Opener

    opener = Opener(browser)
    yield opener
    opener.close()
