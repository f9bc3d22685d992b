"""Weights opened for their tensors, whichever kind of file they are in.

What is opened has `keys()` or names from a header, and `get_slice(name)[place]`, as safetensors have it.
Left out on purpose: which file has which tensor (`tensors.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rs_aligner.model.megatron_file import MegatronFile
from rs_aligner.model.stored import Stored
from rs_aligner.model.torch_file import TorchFile


def open_tensors(file: Path) -> Any:
    """A file of any kind; a folder is one of Megatron's checkpoints with its `config.json`.

    Raises:
        ValueError: as `TorchFile` and `MegatronFile`.
        SafetensorError, OSError: it is a safetensors file that cannot be opened.
    """
    if file.is_dir():
        return MegatronFile(file)
    return safe_open(file, "pt") if file.suffix == ".safetensors" else TorchFile(file)


def are_equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors have the same numbers."""
    with open_tensors(one.file) as left, open_tensors(other.file) as right:
        return torch.equal(left.get_slice(one.name)[:], right.get_slice(other.name)[:])
