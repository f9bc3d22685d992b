"""A training step's kernels for a CPU, by address: what `kernels/training.c` has, and when it is used.

Where there is no compiler, in bf16 and on a GPU the same is done by torch's operators. Which of the two it is
depends on the machine and the model only.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig

from rs_aligner.model.compiled import KERNELS, CannotCompile, address, build

_logger = logging.getLogger("rs_aligner")

SOURCE = KERNELS / "training.c"
PARTS = 8  # sums of a norm's weight gradient, as in the C file
MAX_HEAD_DIM = 256

_LONG, _INT, _FLOAT, _POINTER = ctypes.c_long, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "rs_attention_room": (_LONG,),
    "rs_attention": (*[_POINTER] * 5, _INT),
    "rs_attention_backward": (*[_POINTER] * 7, _INT),
    "rs_norm": (*[_POINTER] * 4, _LONG, _LONG, _FLOAT, _INT),
    "rs_norm_backward": (*[_POINTER] * 6, _LONG, _LONG, _INT),
    "rs_swiglu": (*[_POINTER] * 2, _LONG, _LONG, _INT),
    "rs_swiglu_backward": (*[_POINTER] * 3, _LONG, _LONG, _INT),
}


class Heads(ctypes.Structure):
    """Queries, keys and values, or their gradients; as in the C file."""

    _fields_ = [
        *((name, _POINTER) for name in ("q", "k", "v")),
        *((f"{name}_{per}", _LONG) for name in ("q", "k", "v") for per in ("token", "group")),
    ]


class Batch(ctypes.Structure):
    """Rows and angles; as in the C file."""

    _fields_ = [
        *((name, _LONG) for name in ("rows", "groups", "heads")),
        *((name, _POINTER) for name in ("starts", "lengths")),
        *((name, _LONG) for name in ("step", "longest")),
        *((name, _POINTER) for name in ("cos", "sin")),
        ("scale", _FLOAT),
    ]


class Kernels:
    """The functions of the C file, called with addresses. They check nothing."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        for name, arguments in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes = arguments
            function.restype = _LONG if name == "rs_attention_room" else None
            setattr(self, name.removeprefix("rs_"), function)

    def __getattr__(self, name: str) -> Any:  # for who checks types: the functions are set above
        raise AttributeError(f"training.c has no rs_{name}")


@functools.cache
def load(head_dim: int) -> Kernels | None:
    """The kernels for heads of `head_dim` numbers; None where they cannot be had, said once."""
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        return None
    try:
        library, _, _ = build(SOURCE, (KERNELS,), (f"-DHEAD_DIM={head_dim}",))
        return Kernels(library)
    except (CannotCompile, OSError) as error:
        _logger.info("training steps go without kernels of our own: %s", error)
        return None


def fitting(*tensors: torch.Tensor) -> bool:
    """Whether the kernels are for these: float32 on a CPU."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)


def kernels_of(config: TransformerConfig) -> Kernels | None:
    """The kernels for a model's heads, where it is a float32 one on a CPU."""
    if not config.use_cpu_initialization or config.params_dtype != torch.float32:
        return None
    return load(config.kv_channels)


__all__ = ["PARTS", "Batch", "Heads", "Kernels", "address", "fitting", "kernels_of", "load"]
