"""The weights in another Megatron program's checkpoint, under the names that `transformers` has for them.

The shards lie beside a model's `config.json` (`megatron_folder.py`). Their keys are those of Megatron's
`GPTModel` whose layers have fused norms, behind whatever its program puts in front (`module.`, `model.`):
`decoder.layers.self_attention.linear_qkv.weight` has that parameter of all layers, `[L, ...]`, and
`decoder.layers.7.self_attention.linear_qkv.weight` of one. The family's table says which tensors a
parameter is made of. Whole parameters are read, one at a time. Left out on purpose: mixtures of experts,
and layers that Megatron stores otherwise (Mamba, latent attention): what has no place in the table is told
by its name.

Source: `sharded_state_dict` of megatron-core's `transformer_block.py`, `transformer_layer.py` and `mlp.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

from rs_aligner.megatron_folder import megatron_weights
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import Part
from rs_aligner.model.families.registry import family_of, read_architecture
from rs_aligner.model.megatron_settings import check_settings
from rs_aligner.model.megatron_shards import CONVERT, Shards
from rs_aligner.model.stored import Stored
from rs_aligner.model.torch_file import SHORT

READ = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose parameters Megatron's programs name and order as ours are, by the tests."""

_EMBEDDING = "embedding.word_embeddings.weight"
_PADDED = (_EMBEDDING, "output_layer.weight")  # to a number of rows that ranks divide
_FUSED = {  # where Megatron's layers keep the norms that ours have on their own
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_NOT_WEIGHTS = re.compile(r"(chained_\d+\.)?optimizer\.|rng_state|rerun_state|opt_param|.*\._extra_state$")


class _Entry(NamedTuple):
    """A parameter: its key, which layer of it (None: all), and what it is made of."""

    key: str
    layer: int | None
    part: Part

    @property
    def shape(self) -> tuple[int, ...]:
        """As it should be."""
        shapes = list(self.part.tensors.values())
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


class MegatronFile:
    """The tensors by name; a context manager, as safetensors' own reader is one.

    Args:
        folder: with `config.json`, and Megatron's weights beside it.

    Raises:
        ValueError: the weights cannot be read, or are those of another model; named with what would work.
    """

    def __init__(self, folder: Path) -> None:
        place = megatron_weights(folder)
        assert place is not None, "whoever asks has looked"
        arch = read_architecture(folder)
        if arch.family not in READ:
            raise ValueError(
                f"{folder}: Megatron's checkpoints are read for {', '.join(READ)}, and not for "
                f"{arch.family}. {CONVERT}"
            )
        self._folder, self._shards = folder, Shards(place)
        self._prefix = self._find_prefix()
        check_settings(folder, self._shards, arch)
        self._entries = dict(self._find(arch))
        self._last: tuple[_Entry, dict[str, torch.Tensor]] | None = None

    def header(self) -> dict[str, Stored]:
        """Type and shape of each tensor; what has no place in the model is there under Megatron's name."""
        entries = self._entries.items()
        stored = {name: self._stored(name, one.key, one.part.tensors[name]) for name, one in entries}
        known = {one.key for one in self._entries.values()}
        for key, tensor in self._shards.tensors.items():
            if key.startswith(self._prefix) and key not in known and not _NOT_WEIGHTS.match(key):
                stored[key] = self._stored(key, key, tuple(tensor.size))
        return stored

    def get_slice(self, name: str) -> torch.Tensor:
        """A tensor, whole.

        Raises:
            ValueError: it is damaged.
        """
        entry = self._entries[name]
        if self._last is None or self._last[0] is not entry:
            parameter = self._shards.read(entry.key, entry.layer)[: entry.shape[0]]
            tensors = entry.part.layout.join([parameter])
            self._last = entry, dict(zip(entry.part.tensors, tensors, strict=True))
        return self._last[1][name]

    def __enter__(self) -> MegatronFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last = None

    def _stored(self, name: str, key: str, shape: tuple[int, ...]) -> Stored:
        dtype = self._shards.tensors[key].properties.dtype
        return Stored(self._folder, name, SHORT.get(dtype, str(dtype)), shape)

    def _find_prefix(self) -> str:
        """What its program puts in front of the keys."""
        keys = [key for key in self._shards.tensors if not _NOT_WEIGHTS.match(key)]
        found = [key.removesuffix(_EMBEDDING) for key in keys if key.endswith(_EMBEDDING)]
        if len(found) != 1:
            raise ValueError(
                f"{self._shards.place} has {len(found) or 'no'} tensors {_EMBEDDING}: it is no checkpoint of "
                "one of Megatron's GPT models"
            )
        return found[0]

    def _find(self, arch: Architecture) -> Iterator[tuple[str, _Entry]]:
        """The tensors that are there, with their parameters."""
        family = family_of(arch)
        # An output layer is looked for where there should be none, too: it may differ from the embedding.
        outside = family.outside(replace(arch, tied_embeddings=False, value_head=False))
        for parameter, part in outside.items():
            yield from self._entry(parameter, None, part, arch)
        for parameter, part in family.layer(arch).items():
            for number in range(arch.num_layers):
                named = {family.layers.format(number) + name: s for name, s in part.tensors.items()}
                yield from self._entry(parameter, number, Part(named, part.layout), arch)

    def _entry(
        self, parameter: str, number: int | None, part: Part, arch: Architecture
    ) -> Iterator[tuple[str, _Entry]]:
        for key, layer in _keys(self._prefix, parameter, number):
            if key in self._shards.tensors:
                entry = _Entry(key, layer, part)
                self._check(entry, arch, is_padded=parameter in _PADDED)
                yield from ((name, entry) for name in part.tensors)
                return

    def _check(self, entry: _Entry, arch: Architecture, *, is_padded: bool) -> None:
        """See to it that a parameter has its shape; there may be more rows than tokens."""
        size = tuple(self._shards.tensors[entry.key].size)
        wanted = entry.shape if entry.layer is None else (arch.num_layers, *entry.shape)
        if size != wanted and not (is_padded and size[0] >= wanted[0] and size[1:] == wanted[1:]):
            raise ValueError(
                f"{self._shards.place}: {entry.key} {list(size)} cannot be what {self._folder}/config.json "
                f"asks for: {list(wanted)}"
            )


def _keys(prefix: str, parameter: str, number: int | None) -> Iterator[tuple[str, int | None]]:
    """The keys that a parameter may have, and which layer of it is meant."""
    if number is None:
        yield prefix + parameter, None
        return
    names = [new + parameter.removeprefix(old) for old, new in _FUSED.items() if parameter.startswith(old)]
    for name in (*names, parameter):
        yield f"{prefix}decoder.layers.{name}", number
        yield f"{prefix}decoder.layers.{number}.{name}", None
