"""The decoder's kernels for a CPU: compiled for this machine when they are first needed, then kept.

`kernels/` is plain C, compiled by `model/compiled.py` for the shape of the model's heads. Without a compiler
the decoder runs on torch, as it does on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from rs_aligner.files import checksum
from rs_aligner.generation.decoder import CannotDecode
from rs_aligner.model import compiled

SOURCE = Path(__file__).with_name("kernels") / "kernels.c"
INCLUDES = (SOURCE.parent, compiled.KERNELS)
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
    """A layer's weights, cache and angles, by address, and its window; as in `kernels.c`."""

    _fields_ = [
        *_fields(
            _POINTER,
            "attention_norm qkv qkv_bias q_norm k_norm projection mlp_norm gate_up down keys values cos sin",
        ),
        *_fields(_LONG, "window"),
    ]


class Model(ctypes.Structure):
    """Sizes and working memory; as in `kernels.c`."""

    _fields_ = [
        *_fields(_LONG, "width kv_heads mlp_width max_pages"),
        *_fields(_INT, "half threads sum"),
        *_fields(_FLOAT, "eps scale"),
        *_fields(_POINTER, "hidden partial normed qkv queries mixed gate_up active scores"),
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
    if (why := lacks(head_dim, group)) is not None:
        raise NoKernels(why)
    try:
        return compiled.build(source, INCLUDES, (f"-DHEAD_DIM={head_dim}", f"-DGROUP={group}"))
    except compiled.CannotCompile as error:
        raise NoKernels(str(error)) from error


def lacks(head_dim: int, group: int) -> str | None:
    """What is missing for kernels for such heads, as far as it shows before they are compiled."""
    if head_dim % 2 or not 2 <= head_dim <= 256 or group > 16:
        return f"there are no kernels for {group} query heads of {head_dim} numbers to a key's"
    try:
        compiled.find_compiler()
    except compiled.CannotCompile as error:
        return str(error)
    return None


def fingerprint() -> str:
    """Of what the kernels come from: their source, how they are compiled, and for which processor."""
    files = [*sorted(SOURCE.parent.iterdir()), compiled.KERNELS / "vectors.h"]
    sources = (path.read_bytes() for path in files if path.is_file())
    return checksum(b"\0".join([*sources, " ".join(compiled.FLAGS).encode(), compiled.processor().encode()]))


def tile_shape(width: int, rows: int) -> tuple[int, int, int]:
    """Shape of an array of activations with `width` features: see `kernels.c`."""
    return -(-rows // TILE), width, TILE
