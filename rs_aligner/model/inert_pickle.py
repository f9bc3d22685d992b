"""Pickles of other programs, read without running anything that is in them.

A pickle names functions and calls them. Here it gets what describes sharded tensors and nothing else; of
whatever else it names, the caller decides: it is refused, or an `Inert` stands in its place, which takes
every call and does nothing. Left out on purpose: tensors (`torch_file.py`); an `Inert` stands for their
storages, too.

Source: https://docs.python.org/3/library/pickle.html, "Restricting Globals".
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any

import torch
from torch.distributed.checkpoint import filesystem as torch_files
from torch.distributed.checkpoint import metadata as torch_metadata

_DATACLASSES = (
    *(torch_metadata.Metadata, torch_metadata.MetadataIndex, torch_metadata.StorageMeta),
    *(torch_metadata.TensorStorageMetadata, torch_metadata.BytesStorageMetadata),
    *(torch_metadata.ChunkStorageMetadata, torch_metadata.TensorProperties),
    *(torch_metadata._MEM_FORMAT_ENCODING, torch_files._StorageInfo),
)
_ADMITTED: Mapping[tuple[str, str], Any] = {
    **{(kind.__module__, kind.__qualname__): kind for kind in _DATACLASSES},
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("torch", "float32"): torch.float32,
    ("torch", "bfloat16"): torch.bfloat16,
    ("torch", "float16"): torch.float16,
    ("torch", "float64"): torch.float64,
    ("torch", "int64"): torch.int64,
}
"""Data that describes tensors, and nothing that acts."""


class Inert:
    """What a pickle would have made of something that nobody here needs; what it was given is in `args`."""

    args: tuple[Any, ...]

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        made = super().__new__(cls)
        made.args = args
        return made

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: object) -> None:
        """Attributes are kept: a namespace of settings has them."""
        if isinstance(state, dict):
            self.__dict__.update({name: one for name, one in state.items() if isinstance(name, str)})

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], otherwise: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._otherwise = otherwise

    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module, name))
        return self._otherwise(module, name) if found is None else found

    def persistent_load(self, pid: object) -> Any:
        return self._otherwise("torch", "storage")()


def load(file: IO[bytes], otherwise: Callable[[str, str], Any] = lambda module, name: Inert) -> Any:
    """What a pickle holds.

    Args:
        file: the pickle.
        otherwise: called for each name that is not admitted, with module and name; it raises, or gives what
            stands in its place.

    Raises:
        Exception: whatever the bytes come to, if they are no pickle.
    """
    return _Unpickler(file, otherwise).load()


def load_saved(file: IO[bytes]) -> Any:
    """What `torch.save` has written, with an `Inert` for each tensor.

    Raises:
        Exception: it is no such file.
    """
    with zipfile.ZipFile(file) as archive:
        [name] = [one for one in archive.namelist() if one.endswith("/data.pkl")]
        with archive.open(name) as opened:
            return load(opened)
