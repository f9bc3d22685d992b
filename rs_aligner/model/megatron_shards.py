"""The tensors of sharded files (`torch_dist`) that another program wrote, and what lies beside them.

`.metadata` says of each key its type and shape, into which parts it is cut, and where in which file each
part is, as `torch.save` writes a tensor. It is a pickle, and so is what is not cut into shards: nothing in
them is run (`inert_pickle.py`). The files may lie in a `.nemo` archive, which is not unpacked. Left out on
purpose: which tensors make a model (`megatron_file.py`), and our own checkpoints, which Megatron reads.

Source: torch's `distributed/checkpoint/filesystem.py`, megatron-core's
`dist_checkpointing/strategies/torch.py`.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from rs_aligner.megatron_folder import BACKEND, METADATA, Span, spans
from rs_aligner.model import inert_pickle

FORMAT = "torch_dist"
CONVERT = "Export it with Megatron Bridge (AutoBridge.export_ckpt), and name what that has written"
_COMMON_FILE, _COMMON = "common.pt", "common_state/shard_0_1"  # until Megatron 0.18, and since


class _Part(NamedTuple):
    """A part of a tensor: where it begins, how large it is, and where its bytes are."""

    offsets: Sequence[int]
    sizes: Sequence[int]
    span: Span


class Shards:
    """Sharded files of a folder, or of an archive.

    Args:
        place: the folder that has `.metadata`, or the archive.

    Attributes:
        files: those of the place by name.
        tensors: what is said of each tensor, by its key.

    Raises:
        ValueError: they cannot be read, or not all of them are there.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.files = place, spans(place)
        self._check_format()
        self._metadata = self._read_metadata()
        self.tensors = {
            key: one
            for key, one in self._metadata.state_dict_metadata.items()
            if isinstance(one, TensorStorageMetadata)
        }
        self._parts: dict[str, list[_Part]] = defaultdict(list)
        for index in self._metadata.storage_data:
            if index.fqn in self.tensors:
                sizes = {tuple(one.offsets): one.sizes for one in self.tensors[index.fqn].chunks}
                offsets = tuple(index.offset)
                self._parts[index.fqn].append(_Part(offsets, sizes[offsets], self._span(index)))

    def read(self, key: str, layer: int | None) -> torch.Tensor:
        """A tensor, or the one of a layer where it has all layers.

        Raises:
            ValueError: it is damaged.
        """
        stored = self.tensors[key]
        whole = torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
        out = torch.empty_like(whole if layer is None else whole[layer], device="cpu")
        wanted, filled = 0 if layer is None else 1, 0
        for offsets, sizes, span in self._parts[key]:
            if layer is not None and not offsets[0] <= layer < offsets[0] + sizes[0]:
                continue
            part = self._load(key, span).reshape(*sizes)
            place = tuple(slice(a, a + b) for a, b in zip(offsets[wanted:], sizes[wanted:], strict=True))
            out[place] = part if layer is None else part[layer - offsets[0]]
            filled += out[place].numel()
        if filled != out.numel():
            raise ValueError(f"{self.place}: {key} has {filled:,} of {out.numel():,} numbers: fetch it again")
        return out

    def common(self) -> Any:
        """What is not cut into shards, without whatever acts; None where there is nothing.

        Raises:
            ValueError: it cannot be read.
        """
        span = self.files.get(_COMMON_FILE)
        for index in self._metadata.storage_data:
            if span is None and index.fqn == _COMMON:
                span = self._span(index)
        if span is None:
            return None
        try:
            found = inert_pickle.load_saved(io.BytesIO(span.read()))
            return found[0] if isinstance(found, list) else found  # a shard is a list of one
        except Exception as error:  # a pickle that is none raises whatever its bytes come to
            raise ValueError(
                f"{self.place}: {_COMMON_FILE} cannot be read ({type(error).__name__})"
            ) from None

    def _check_format(self) -> None:
        try:
            found = json.loads(self.files[BACKEND].read())["sharded_backend"]
        except (KeyError, TypeError, ValueError):
            found = None
        if found != FORMAT:
            said = (
                f"whose {BACKEND} names the format {found!r}"
                if found
                else f"without a {BACKEND} that names it"
            )
            raise ValueError(
                f"{self.place} is a checkpoint {said}; only Megatron's {FORMAT} is read. {CONVERT}"
            )

    def _read_metadata(self) -> Metadata:
        try:
            found = inert_pickle.load(io.BytesIO(self.files[METADATA].read()))
        except Exception as error:  # as above
            raise ValueError(f"{self.place}: {METADATA} cannot be read ({type(error).__name__})") from None
        if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
            raise ValueError(f"{self.place}: {METADATA} describes no checkpoint")
        return found

    def _span(self, index: Any) -> Span:
        info = self._metadata.storage_data[index]
        file = self.files.get(info.relative_path)
        if file is None:
            raise ValueError(f"{self.place} lacks {info.relative_path}, which its {METADATA} names: fetch it")
        if file.size < info.offset + info.length:
            raise ValueError(f"{self.place}: {info.relative_path} was cut short: fetch it again")
        return Span(file.file, file.start + info.offset, info.length)

    def _load(self, key: str, span: Span) -> torch.Tensor:
        try:
            found = torch.load(io.BytesIO(span.read()), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its parsers raise
            raise ValueError(
                f"{self.place}: {key} is damaged ({type(error).__name__}): fetch it again"
            ) from None
        if not isinstance(found, torch.Tensor):
            raise ValueError(f"{self.place}: {key} holds no tensor but a {type(found).__name__}")
        return found
