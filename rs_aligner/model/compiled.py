"""C compiled for this machine when it is first needed, then kept: how, and where.

Any C compiler will do, and a second. What is compiled depends on the processor, the compiler and what is
defined, and is kept under that name in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`). Left out
on purpose: C++ extensions of torch. They would need its headers and half a minute, and what is compiled here
needs nothing but the addresses of arrays.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rs_aligner.files import cache_folder, checksum, write_whole

KERNELS = Path(__file__).with_name("kernels")
"""A training step's kernels (`native.py`), and what those of the decoder include, too."""
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-fopenmp")
COMPILE_SECONDS = 120
_SUM_LENGTH = len(checksum(b""))


class CannotCompile(Exception):
    """C cannot be compiled here; the message says why."""


def build(source: Path, includes: Sequence[Path], defines: Sequence[str]) -> tuple[Path, str, float]:
    """Compile a C file, unless that was done before.

    Args:
        source: the file.
        includes: folders with what it may include.
        defines: what the compiler is told besides, as `-DNAME=1`.

    Returns:
        The library, the compiler with its version, and the seconds that it took, 0 if it was there.

    Raises:
        CannotCompile: no compiler, or it failed.
    """
    compiler = find_compiler()
    version = _run([compiler, "--version"]).splitlines()[0]
    what = [*FLAGS, *defines]
    sources = [source, *(path for folder in includes for path in sorted(folder.iterdir()))]
    parts = [*(path.read_text() for path in sources), *what, compiler, version, processor()]
    library = _folder() / f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    if _is_whole(library):
        return library, version, 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:  # other ranks may be at it, too
        made = Path(scratch) / "kernels.so"
        _run([compiler, *what, *(f"-I{folder}" for folder in includes), "-o", str(made), str(source), "-lm"])
        content = made.read_bytes()
        write_whole(made, [content, checksum(content).encode()])
        os.replace(made, library)
    return library, version, time.monotonic() - began


def find_compiler() -> str:
    """The C compiler of this machine.

    Raises:
        CannotCompile: there is none.
    """
    names = [os.environ.get("CC", ""), "cc", "gcc"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise CannotCompile("there is no C compiler (cc or gcc, or what CC names)")
    return compiler


def _is_whole(library: Path) -> bool:
    """Whether a kept library is there and as it was written: its checksum stands behind what the linker made.

    A library that was cut is no error for the linker: the first call of what is missing ends the process.
    """
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return checksum(memoryview(content)[:-_SUM_LENGTH]).encode() == content[-_SUM_LENGTH:]


def address(array: np.ndarray | torch.Tensor | None) -> int | None:
    """Where an array's first number lies."""
    if array is None:
        return None
    if isinstance(array, torch.Tensor):
        return array.data_ptr()
    address: int = array.__array_interface__["data"][0]  # as .ctypes.data, which is slower
    return address


def _folder() -> Path:
    """Where compiled kernels are kept; a private temporary folder if the user's cannot be written."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK | os.X_OK):
            return cache
    except OSError:
        pass
    return _private_folder()


@functools.cache
def _private_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="rs_aligner_kernels_"))


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-200:])
        raise CannotCompile(f"{command[0]} failed: {first}") from error
    return done.stdout


def processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
