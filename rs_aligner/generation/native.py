"""The decoder's kernels for a CPU: compiled for this machine when they are first needed, then kept.

`kernels/` is plain C, so this takes a second and any C compiler. What is compiled depends on the processor,
the compiler and the shape of the model's heads, and is kept under that name in the user's cache folder
(`XDG_CACHE_HOME`, else `~/.cache`). Without a compiler the decoder runs on torch, as it does on a GPU.

Left out: C++ extensions of torch. They would need its headers and half a minute, and these kernels need
nothing but the addresses of their arrays.
"""

from __future__ import annotations

import ctypes
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
from typing import Any

import numpy as np
import torch

from rs_aligner.files import checksum, write_whole
from rs_aligner.generation.decoder import CannotDecode

SOURCE = Path(__file__).with_name("kernels") / "kernels.c"
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-fopenmp")
COMPILE_SECONDS = 120
_SUM_LENGTH = len(checksum(b""))
LANES = 16  # tokens in a page, and rows in a vector
TILE = 32  # rows in a tile of activations
MAX_SHARING = 8  # rows of an item of `attend`, at most

_LONG, _INT, _FLOAT, _POINTER = ctypes.c_long, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "rs_linear": (_POINTER, _INT, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _LONG, _INT, _INT),
    "rs_norm": (_POINTER, _POINTER, _POINTER, _LONG, _LONG, _FLOAT),
    "rs_embed": (_POINTER, _INT, _POINTER, ctypes.c_int32, ctypes.c_int32, _POINTER, _LONG, _LONG),
    "rs_take": (_POINTER, _POINTER, _POINTER, _LONG, _LONG),
    "rs_rows": (_POINTER, _POINTER, _LONG, _LONG),
    "rs_attend_room": (_LONG,),
    "rs_sizes": (_LONG,),
    "rs_regions": (_LONG,),
    "rs_run": (_POINTER, _POINTER, _POINTER, _LONG, _LONG),
    "rs_choose": (
        *(_POINTER, _LONG, _LONG, _POINTER, _POINTER, _FLOAT, _INT),
        *(_POINTER, _LONG, _POINTER, _POINTER, _POINTER),
    ),
}


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class Layer(ctypes.Structure):
    """A layer's weights and cache, by address; as in `kernels.c`."""

    _fields_ = _fields(
        _POINTER,
        "attention_norm qkv qkv_bias q_norm k_norm projection mlp_norm gate_up down keys values",
    )


class Model(ctypes.Structure):
    """Sizes and working memory; as in `kernels.c`."""

    _fields_ = [
        *_fields(_LONG, "width kv_heads mlp_width max_pages"),
        *_fields(_INT, "half threads sum"),
        *_fields(_FLOAT, "eps"),
        *_fields(_POINTER, "cos sin hidden partial normed qkv queries mixed gate_up active scores"),
    ]


class Batch(ctypes.Structure):
    """The tokens of a run; as in `kernels.c`."""

    _fields_ = [
        *_fields(_LONG, "rows items"),
        *_fields(_POINTER, "positions pages begin common"),
    ]


class NoKernels(CannotDecode):
    """The kernels cannot be had here; the message says why."""


class Kernels:
    """The functions of `kernels/`, called with addresses. They check nothing.

    Attributes:
        seconds: what compiling took; 0 if they were kept from before.
        compiler: with its version.
    """

    def __init__(self, library: Path, compiler: str, seconds: float) -> None:
        self.compiler, self.seconds = compiler, seconds
        loaded = ctypes.CDLL(str(library))
        for name, arguments in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, _LONG if len(arguments) == 1 else None
            setattr(self, name.removeprefix("rs_"), function)

    def __getattr__(self, name: str) -> Any:  # for who checks types: the functions are set above
        raise AttributeError(f"kernels.c has no rs_{name}")


@functools.cache
def load_kernels(head_dim: int, group: int) -> Kernels:
    """The kernels for heads of `head_dim` numbers, `group` query heads for each key's.

    Raises:
        NoKernels: no compiler, or it failed.
    """
    library, compiler, seconds = build(SOURCE, head_dim, group)
    try:
        return Kernels(library, compiler, seconds)
    except OSError as error:
        raise NoKernels(f"{library} cannot be loaded: {error}") from error


def build(source: Path, head_dim: int, group: int) -> tuple[Path, str, float]:
    """Compile a C file, unless that was done before; it may include `kernels.c`.

    Returns:
        The library, the compiler with its version, and the seconds that it took, 0 if it was there.

    Raises:
        NoKernels: as `load_kernels`.
    """
    if head_dim % 2 or not 2 <= head_dim <= 256 or group > 16:
        raise NoKernels(f"there are no kernels for {group} query heads of {head_dim} numbers to a key's")
    names = [os.environ.get("CC", ""), "cc", "gcc"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise NoKernels("there is no C compiler (cc or gcc, or what CC names)")
    version = _run([compiler, "--version"]).splitlines()[0]
    what = [*FLAGS, f"-DHEAD_DIM={head_dim}", f"-DGROUP={group}"]
    sources = [source, *sorted(SOURCE.parent.iterdir())]
    parts = [*(path.read_text() for path in sources), *what, compiler, version, _processor()]
    library = _folder() / f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    if _is_whole(library):
        return library, version, 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:  # other ranks may be at it, too
        made = Path(scratch) / "kernels.so"
        _run([compiler, *what, f"-I{SOURCE.parent}", "-o", str(made), str(source), "-lm"])
        content = made.read_bytes()
        write_whole(made, [content, checksum(content).encode()])
        os.replace(made, library)
    return library, version, time.monotonic() - began


def _is_whole(library: Path) -> bool:
    """Whether a kept library is there and as it was written: its checksum stands behind what the linker made.

    A library that was cut is no error for the linker: the first call of what is missing ends the process.
    """
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return checksum(memoryview(content)[:-_SUM_LENGTH]).encode() == content[-_SUM_LENGTH:]


def fingerprint() -> str:
    """Of what the kernels come from: their source, how they are compiled, and for which processor."""
    sources = (path.read_bytes() for path in sorted(SOURCE.parent.iterdir()) if path.is_file())
    return checksum(b"\0".join([*sources, " ".join(FLAGS).encode(), _processor().encode()]))


def address(array: np.ndarray | torch.Tensor | None) -> int | None:
    """Where an array's first number lies."""
    if array is None:
        return None
    if isinstance(array, torch.Tensor):
        return array.data_ptr()
    address: int = array.__array_interface__["data"][0]  # as .ctypes.data, which is slower
    return address


def tile_shape(width: int, rows: int) -> tuple[int, int, int]:
    """Shape of an array of activations with `width` features: see `kernels.c`."""
    return -(-rows // TILE), width, TILE


def _folder() -> Path:
    """Where compiled kernels are kept; a private temporary folder if the user's cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rs_aligner"
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
        raise NoKernels(f"{command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-200:])
        raise NoKernels(f"{command[0]} failed: {first}") from error
    return done.stdout


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
