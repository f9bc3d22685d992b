"""The files of a checkpoint as Megatron and torch have them, written with checksums and read without trust.

Written from this process: a rank's tensors, one after the other, into one file, which is summed on the way
and synced. Megatron's own writer forks two processes for each save and waits for them without end; torch's
forks none. Read by a closed list of classes: `.metadata` is a pickle, and a pickle may call what it names.
`install` puts our readers where Megatron looks for torch's, so that each of its ways to read has them.
Left out on purpose: several files and threads a rank; many ranks have many files.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing import serialization as megatron_loading
from megatron.core.dist_checkpointing.strategies import common as megatron_common
from megatron.core.dist_checkpointing.strategies import torch as megatron_torch
from megatron.core.msc_utils import MultiStorageClientFeature
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from rs_aligner.files import running_checksum
from rs_aligner.megatron_folder import METADATA
from rs_aligner.model import inert_pickle
from rs_aligner.record.manifest import BrokenCheckpoint, Stored


class SummedStream(io.RawIOBase):
    """A file that is written from front to back, and whose size and checksum are known at its end.

    Attributes:
        failure: the first error of writing; torch's archive writer hides it behind one of its own.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._sum, self._size = running_checksum(), 0
        self.failure: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        """All of the content, however little a single call of the system takes."""
        left = memoryview(content).cast("B")
        self._sum.update(left)
        self._size += (size := len(left))
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException as error:
            self.failure = self.failure or error
            raise
        return size

    def tell(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        """Close the file when what it holds is on the disk."""
        if not self.closed:
            try:
                self._sync()
            finally:
                self._file.close()
                super().close()

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self.failure = self.failure or error
            raise

    @property
    def stored(self) -> Stored:
        """What was written."""
        return Stored(self._size, self._sum.hexdigest())


class SummedFiles(FileSystem):
    """Torch's view of a folder that is written, with what each file has come to hold.

    Attributes:
        stored: by the file's name.
    """

    def __init__(self) -> None:
        self.stored: dict[str, Stored] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        """A new file, synced when it is left.

        Raises:
            OSError: it cannot be written, whatever torch made of that.
        """
        assert mode == "wb"
        stream = SummedStream(Path(path))
        try:
            with stream:
                yield stream  # torch closes it, too
        except Exception as error:
            raise stream.failure or error from None
        self.stored[Path(path).name] = stream.stored

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.stored[Path(new_path).name] = self.stored.pop(Path(path).name)


class Writer(FileSystemWriter):
    """Torch's writer of sharded tensors, into summed files: one a rank, and `.metadata`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, single_file_per_rank=True, sync_files=False, thread_count=1
        )  # the stream does
        self.fs = self.files = SummedFiles()

    def storage_meta(self) -> StorageMeta:
        """Nothing of where and when it was written: what is equal is equal in its bytes."""
        return StorageMeta()


def _refuse(module: str, name: str) -> Any:
    raise BrokenCheckpoint(
        f"{METADATA} names {module}.{name}, which has no business in a checkpoint: it was not "
        "written by RS Aligner, and nothing of it was run"
    )


def read_metadata(folder: Path) -> Metadata:
    """What tensors a checkpoint has and where they lie.

    Raises:
        BrokenCheckpoint: it cannot be read, or names what it has no need of.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            found = inert_pickle.load(file, _refuse)
    except BrokenCheckpoint:
        raise
    except Exception as error:  # a pickle that is none raises whatever its bytes come to
        raise BrokenCheckpoint(f"{METADATA} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, Metadata):
        raise BrokenCheckpoint(f"{METADATA} describes no checkpoint")
    return found


class Reader(FileSystemReader):
    """Torch's reader of sharded tensors, which unpickles what it knows and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As `read_metadata`; a rank's own, of which torch knows, is never written here."""
        found = read_metadata(Path(self.path))
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


class Planner(megatron_torch.MCoreLoadPlanner):
    """Megatron's planner, which reads objects by torch's closed list of classes."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        name, found = read_item.dest_index.fqn, torch.load(value, weights_only=True)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], found)
        else:
            self.state_dict[name] = found


def _load_common(self: Any, checkpoint_dir: str | Path) -> Any:
    return read_common(Path(checkpoint_dir))


def read_common(folder: Path) -> dict[str, Any]:
    """What is not cut into shards: the counters, and the optimizer's numbers.

    Raises:
        BrokenCheckpoint: it cannot be read, or names what it has no need of.
    """
    name = megatron_common.COMMON_STATE_FNAME
    try:
        found = torch.load(folder / name, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BrokenCheckpoint(
            f"{name} cannot be read, or names what has no business in a checkpoint; nothing of it was run"
        ) from None
    except Exception as error:  # torch raises whatever its parsers raise
        raise BrokenCheckpoint(f"{name} cannot be read: {type(error).__name__}") from None
    if not isinstance(found, dict):
        raise BrokenCheckpoint(f"{name} holds no state")
    return found


def install() -> None:
    """Put our readers where Megatron looks for torch's; safe to call again."""
    MultiStorageClientFeature.disable()  # it has readers of its own
    megatron_torch.FileSystemReader = megatron_torch.CachedMetadataFileSystemReader = Reader
    megatron_torch.MCoreLoadPlanner = Planner
    if (of_016 := getattr(megatron_common, "TorchCommonLoadStrategy", None)) is not None:
        of_016.load_common = _load_common
    else:  # a function since 0.17, which `load` has by its name
        megatron_loading.load_common = functools.partial(_load_common, None)


install()
