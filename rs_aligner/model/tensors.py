"""The tensors that a Hugging Face folder has, by the headers of its files, against those that it should have.

A header says name, type and shape of each tensor of a safetensors file and where it ends, so a folder is
checked in milliseconds, before anything heavy is imported. Every tensor of the model must be there, in its
shape, and what else is there must be known to do no harm: a bias that nobody adds, or a layer that nobody
runs, would make another model of it without a word. Left out on purpose: whether the numbers make sense.

Source of the format: https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import Family, Parts
from rs_aligner.model.families.registry import family_of

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The types that are read, by their names in a header, with their names in a `config.json`."""

_HARMLESS = re.compile(r"rotary_emb\.inv_freq$")  # old transformers saved it; it follows from the config
_SHOWN = 3  # names in a message
_CHUNK = 1 << 24  # bytes compared at once


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its type as the header names it, its shape, its first byte and the one behind."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: it is no such file, or not all of it is there.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(length) if length <= size - 8 else b""
        opened.seek(0)
        is_pointer = opened.read(40).startswith(b"version https://git-lfs")
    if is_pointer:
        raise ValueError(f"{file} is a Git LFS pointer and not the weights: run `git lfs pull` in its folder")
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        begin = 8 + length
        found = {
            name: Stored(
                file,
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


def read_headers(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder by name, in one file or in those that its index names.

    Raises:
        ValueError: there are no such files, or one of them is absent or damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WHOLE).is_file():
            raise ValueError(f"{folder} has no {WHOLE} and no {INDEX}; other formats are not read")
        return read_header(folder / WHOLE)
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of safetensors files; fetch it again") from None
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {_some(absent)}, named in {INDEX}; fetch what is missing")
    return {name: stored for file in files for name, stored in read_header(folder / file).items()}


def expected(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a model, as `transformers` has them."""
    family = family_of(arch)
    wanted = _tensors(family.outside(arch))
    layer = _tensors(family.layer(arch))
    for number in range(arch.num_layers):
        wanted |= {family.layers.format(number) + name: shape for name, shape in layer.items()}
    return wanted


def num_parameters(arch: Architecture) -> int:
    """Of the whole model, shared weights counted once."""
    return sum(math.prod(shape) for shape in expected(arch).values())


def _tensors(parts: Parts) -> dict[str, tuple[int, ...]]:
    return {name: shape for part in parts.values() for name, shape in part.tensors.items()}


def check_tensors(folder: Path, arch: Architecture, *, leave: Collection[str] = ()) -> dict[str, Stored]:
    """See to it that a folder has the tensors of its model and no others; returns them.

    Args:
        folder: a Hugging Face folder.
        arch: what its `config.json` says, or the reward model that is made of it.
        leave: names of tensors that are not going to be read.

    Raises:
        ValueError: a file is absent or damaged; a tensor is missing, has another shape, is quantised, or
            belongs to no part of the model; or an output layer differs from the embedding to which
            `config.json` ties it. The tensors are named, with what would work.
    """
    found, wanted, head = read_headers(folder), expected(arch), family_of(arch).head
    for name in leave:
        wanted.pop(name, None)
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{folder} lacks {'the tensor' if len(missing) == 1 else 'the tensors'} {_some(missing)}, "
            f"which its config.json asks for{_why_missing(missing, found, family_of(arch))}"
        )
    for name, shape in wanted.items():
        stored = found[name]
        if stored.shape != shape:
            raise ValueError(
                f"{folder}: {name} {list(stored.shape)} cannot be what its config.json asks for: "
                f"{list(shape)}"
            )
        if stored.dtype not in DTYPES:
            raise ValueError(
                f"{folder}: {name} is stored as {stored.dtype}: quantised weights are not read; use the "
                f"model that it was made from, with weights in one of {', '.join(DTYPES.values())}"
            )
    unread = [name for name in found if name not in wanted and not _HARMLESS.search(name)]
    for name in (head, *leave) if arch.value_head else leave:
        if name in unread:
            unread.remove(name)
    if arch.tied_embeddings and head in unread:
        _check_tie(folder, found, family_of(arch))
        unread.remove(head)
    if unread:
        raise ValueError(
            f"{folder} has {len(unread):,} {'tensors' if len(unread) > 1 else 'tensor'} that a {arch.family} "
            f"model as its config.json describes it does not have: {_some(unread)}. "
            + _what_then(folder, unread, arch)
        )
    return found


def _check_tie(folder: Path, found: Mapping[str, Stored], family: Family) -> None:
    head, embedding = found[family.head], found[family.embedding]
    if (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and _are_equal(head, embedding):
        return
    raise ValueError(
        f"{folder}: {family.head} differs from {family.embedding}, but config.json says "
        "tie_word_embeddings: true. Set it to false if the model has an output layer of its own "
        "(transformers 5 reads it so, older ones tie the two); if it has none, take "
        f"{family.head} out of the file"
    )


def _are_equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors of the same type and shape have the same bytes."""
    with one.file.open("rb") as left, other.file.open("rb") as right:
        left.seek(one.start)
        right.seek(other.start)
        for place in range(0, one.end - one.start, _CHUNK):
            size = min(_CHUNK, one.end - one.start - place)
            if left.read(size) != right.read(size):
                return False
    return True


def _why_missing(missing: Collection[str], found: Mapping[str, Stored], family: Family) -> str:
    if family.embedding.removeprefix(family.trunk) in found:
        return (
            ": its tensors are those of a bare trunk (saved by AutoModel); save it with "
            "AutoModelForCausalLM, or for a reward model with AutoModelForSequenceClassification"
        )
    if list(missing) == [family.head]:
        return "; if the embedding is the output layer, too, set tie_word_embeddings to true in config.json"
    return ""


def _what_then(folder: Path, unread: Collection[str], arch: Architecture) -> str:
    """Why tensors may be there that nobody reads, and what to do."""
    of_layer = re.compile(re.escape(family_of(arch).layers).replace(r"\{\}", r"(\d+)"))
    beyond = [int(layer[1]) for name in unread if (layer := of_layer.match(name))]
    if beyond and max(beyond) >= arch.num_layers:
        return (
            f"They go up to layer {max(beyond)}, and num_hidden_layers says {arch.num_layers}: correct it in "
            "config.json"
        )
    if all(name.endswith(".bias") for name in unread):
        *others, last = dict.fromkeys(n.split(".")[-2] for n in expected(arch) if n.endswith(".bias")) or [""]
        has = f"with biases on {', '.join(others)} and {last} only" if last else "without biases"
        return f"A {arch.family} model is read {has}; one with others is not supported"
    return (
        "The model would not be what was trained. If transformers does not use them either, write the folder "
        f"anew without them: {_write_anew(folder)}"
    )


def _write_anew(folder: Path) -> str:
    return (
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('NEW')\", copy the tokenizer's files "
        "into NEW, and name that"
    )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown
