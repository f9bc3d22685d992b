"""A tensor as a file's header has it: name, type, shape; and where it lies in a safetensors file.

Source of the format: https://github.com/huggingface/safetensors (README, "Format"). Left out on purpose:
which tensors a model should have (`tensors.py`), and PyTorch's own format (`torch_file.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The types that are read, by their names in a header, with their names in a `config.json`."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its type and its shape.

    Attributes:
        file: that it is in.
        name: that it has there.
        dtype: as safetensors name it, or another text where they have none of the kind.
        shape: of the tensor.
        start, end: its first byte and the one behind, in a safetensors file; elsewhere 0.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0

    @property
    def is_safetensors(self) -> bool:
        """Whether its bytes can be found by `start` and `end`."""
        return self.file.suffix == ".safetensors"


def check_fetched(file: Path) -> None:
    """See to it that a file is no Git LFS pointer, which is what a clone without LFS has.

    Raises:
        ValueError: it is.
    """
    with file.open("rb") as opened:
        if opened.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(
                f"{file} is a Git LFS pointer and not the weights: run `git lfs pull` in its folder"
            )


def read_safetensors(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: it is no such file, or not all of it is there.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(length) if length <= size - 8 else b""
    check_fetched(file)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        begin = 8 + length
        found = {
            name: Stored(
                file,
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                begin + entry["data_offsets"][0],
                begin + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{file} is no safetensors file, or a damaged one ({size:,} bytes): fetch it again"
        ) from None
    whole = max((stored.end for stored in found.values()), default=begin)
    if size < whole:
        raise ValueError(f"{file} was cut short: it has {size:,} of {whole:,} bytes; fetch it again")
    if size > whole:
        raise ValueError(f"{file} is damaged: it has {size:,} bytes instead of {whole:,}; fetch it again")
    return found
