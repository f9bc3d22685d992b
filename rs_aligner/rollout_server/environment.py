"""Where vLLM's own environment is: it does not fit into the project's, so `scripts/setup_vllm.sh` makes one.

It lies in the user's cache folder under a name with the checksum of its pins, so that another version of the
project has its own. `python -m rs_aligner.rollout_server.environment [cpu|gpu]` prints the build and the
folder, which is how the script knows both. Left out on purpose: how it is made, and whether vLLM works in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from rs_aligner.files import cache_folder

VARIABLE = "RS_ALIGNER_VLLM_PYTHON"
"""Names the Python of another environment that has vLLM."""
STAMP = "made"
"""The file that lies in an environment that is whole."""
Build = Literal["cpu", "gpu"]
_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements"


def build_here() -> Build:
    """Which of vLLM's builds this machine is for: a GPU's where NVIDIA's driver shows one."""
    if (found := shutil.which("nvidia-smi")) is None:
        return "cpu"
    listed = subprocess.run([found, "--list-gpus"], capture_output=True, check=False)
    return "gpu" if listed.returncode == 0 and listed.stdout.strip() else "cpu"


def folder_of(build: Build) -> Path | None:
    """The folder of the environment, made or not; None where the package was installed without its pins."""
    pins = _REQUIREMENTS / f"vllm_{build}.txt"
    if not pins.is_file():
        return None
    version = "python {}.{}\n".format(*sys.version_info).encode()
    return cache_folder() / f"vllm-{build}-{hashlib.sha256(version + pins.read_bytes()).hexdigest()[:12]}"


def python_of(folder: Path) -> Path | None:
    """The Python of an environment that is whole; torch's place included, where it is borrowed."""
    borrowed = folder / "borrowed"
    is_whole = (folder / STAMP).is_file() and (not borrowed.is_dir() or (borrowed / "torch").is_dir())
    return folder / "bin" / "python" if is_whole else None


def find_python() -> Path:
    """The Python that vLLM's servers run in.

    Raises:
        ValueError: there is none; with what makes one.
    """
    if named := os.environ.get(VARIABLE):
        if not os.access(named, os.X_OK) or not Path(named).is_file():
            raise ValueError(f"{VARIABLE}={named} is no Python that can be started")
        return Path(named)
    build = build_here()
    wanted = folder_of(build)
    makes = "bash scripts/setup_vllm.sh of a source checkout makes it"
    if wanted is None:  # of an installed package: the newest that some checkout has made
        made = [one for one in cache_folder().glob(f"vllm-{build}-*") if (one / STAMP).is_file()]
        wanted = max(made, key=lambda one: (one / STAMP).stat().st_mtime, default=None)
        if wanted is None:
            raise ValueError(f"vLLM has no environment in {cache_folder()}: {makes}, or set {VARIABLE}")
    if (python := python_of(wanted)) is None:
        raise ValueError(f"vLLM's environment is not in {wanted}, or not whole: {makes}, or set {VARIABLE}")
    return python


def _main(arguments: list[str]) -> None:
    build = build_here()
    if arguments:
        if arguments[0] not in ("cpu", "gpu"):
            sys.exit(f"setup_vllm: {arguments[0]} is no build of vLLM; cpu and gpu are")
        build = "gpu" if arguments[0] == "gpu" else "cpu"
    print(build, folder_of(build))


if __name__ == "__main__":
    _main(sys.argv[1:])
