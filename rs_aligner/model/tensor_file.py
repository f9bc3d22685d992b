"""A safetensors file that is written a tensor at a time, so that nobody holds all of them.

The format is a header that says where each tensor lies, and the tensors' bytes behind it; all that is known
before the first tensor is there. Source: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from rs_aligner.model.stored import DTYPES

_NAMES = {getattr(torch, name): short for short, name in DTYPES.items()}
_ALIGNED = 8  # bytes: where the first tensor begins, as the format's own writer has it


class TensorFile:
    """Tensors of one type, given in the order of their names; a context manager, which closes the file.

    What goes wrong on the way is kept and not raised, and nothing more is written: the ranks that send
    tensors have to be heard out.

    Args:
        path: of the file.
        shapes: of all tensors by name, in the order in which they are written.
        dtype: in which they are written.

    Attributes:
        failure: the first error, or None.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self.failure: OSError | None = None
        self._path, self._dtype = path, dtype
        self._shapes: Iterator[tuple[int, ...]] = iter(shapes.values())
        self._head = _header(shapes, dtype)
        self._file: BinaryIO | None = None

    def __enter__(self) -> TensorFile:
        try:
            self._file = self._path.open("wb")
            self._file.write(self._head)
        except OSError as error:
            self.failure = error
        return self

    def write(self, tensor: torch.Tensor) -> None:
        """Write the next tensor, of whatever type, in the file's."""
        assert tuple(tensor.shape) == next(self._shapes), "tensors come in the order of their names"
        if self.failure is not None or self._file is None:
            return
        content = tensor.to("cpu", self._dtype).contiguous().view(torch.uint8)  # numpy knows no bfloat16
        try:
            self._file.write(content.numpy().data.cast("B"))
        except OSError as error:
            self.failure = error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as closing:
            self.failure = self.failure or closing


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
