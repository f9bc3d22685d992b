"""The tensors that a Hugging Face folder has, by the headers of its files, against those that it should have.

A header says name, type and shape of each tensor of a safetensors file and where it ends, so a folder is
checked in milliseconds, before anything heavy is imported; of PyTorch's own files torch has to tell it. Every
tensor of the model must be there, in its shape, and what else is there must be known to do no harm: a bias
that nobody adds, or a layer that nobody runs, would make another model of it without a word. Left out on
purpose: whether the numbers make sense.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from rs_aligner.megatron_folder import megatron_weights
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import Family, Parts
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.stored import DTYPES, Stored, read_safetensors

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
BIN_INDEX, BIN_WHOLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
_STACKED = ".experts.gate_up_proj"  # the matrices of all experts of a layer in one tensor
_SHOWN = 3  # names in a message
_CHUNK = 1 << 24  # bytes compared at once


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a file by name, of whichever kind it is.

    Raises:
        ValueError: it cannot be read, or not all of it is there.
    """
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    from rs_aligner.model.torch_file import read_torch_file  # torch is slow to import

    return read_torch_file(file)


def read_headers(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder by name, in one file or in those that its index names.

    Where there are safetensors nothing else is looked at; where there is nothing of the kind, a checkpoint of
    another Megatron program is.

    Raises:
        ValueError: there are no such files, or one of them is absent or damaged.
    """
    for index, whole in ((INDEX, WHOLE), (BIN_INDEX, BIN_WHOLE)):
        if (folder / index).is_file():
            files = _indexed(folder, index)
            return {name: stored for file in files for name, stored in read_header(folder / file).items()}
        if (folder / whole).is_file():
            return read_header(folder / whole)
    if megatron_weights(folder) is not None:
        from rs_aligner.model.megatron_file import MegatronFile  # as slow

        return MegatronFile(folder).header()
    raise ValueError(
        f"{folder} has no {WHOLE}, no {BIN_WHOLE}, and neither's index; other formats are not read"
    )


def unread_bins(folder: Path) -> list[str]:
    """The weights in PyTorch's own format, or their index, that a folder has beside safetensors."""
    if not any((folder / name).is_file() for name in (INDEX, WHOLE)):
        return []
    return [name for name in (BIN_INDEX, BIN_WHOLE) if (folder / name).is_file()]


def _indexed(folder: Path, index: str) -> list[str]:
    try:
        files = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder / index} is no index of weights; fetch it again") from None
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {_some(absent)}, named in {index}; fetch what is missing")
    return files


def expected(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a model, as `transformers` has them."""
    family = family_of(arch)
    wanted = _tensors(family.outside(arch))
    for number, one in enumerate(arch.stage(0, 1)):
        layer = _tensors(family.layer(one))
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
    family, wanted = family_of(arch), expected(arch)
    found, head = _named_alike(read_headers(folder), family), family.head
    for name in leave:
        wanted.pop(name, None)
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(
            f"{folder} lacks {'the tensor' if len(missing) == 1 else 'the tensors'} {_some(missing)}, "
            f"which its config.json asks for{_why_missing(folder, missing, found, family)}"
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
    harmless = re.compile(f"(?:{family.harmless})$")
    unread = [name for name in found if name not in wanted and not harmless.search(name)]
    for name in (head, *leave) if arch.value_head else leave:
        if name in unread:
            unread.remove(name)
    if arch.tied_embeddings and head in unread:
        _check_tie(folder, found, family)
        unread.remove(head)
    if unread:
        raise ValueError(
            f"{folder} has {len(unread):,} {'tensors' if len(unread) > 1 else 'tensor'} that a {arch.family} "
            f"model as its config.json describes it does not have: {_some(unread)}. "
            + _what_then(folder, unread, arch)
        )
    return found


def _named_alike(found: dict[str, Stored], family: Family) -> dict[str, Stored]:
    """Tensors by their whole names: those of a trunk alone (saved by AutoModel) lack what it is called.

    GPT-2's own folders are such. Where the embedding is the output layer, too, nothing else is missing.
    """
    if family.embedding in found or family.embedding.removeprefix(family.trunk) not in found:
        return found
    return {name if name == family.head else family.trunk + name: stored for name, stored in found.items()}


def _check_tie(folder: Path, found: Mapping[str, Stored], family: Family) -> None:
    head, embedding = found[family.head], found[family.embedding]
    if (head.dtype, head.shape) == (embedding.dtype, embedding.shape):
        if head.is_safetensors:
            same = _are_equal(head, embedding)
        else:
            from rs_aligner.model.opened import are_equal

            same = are_equal(head, embedding)
        if same:
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


def _why_missing(folder: Path, missing: Collection[str], found: Mapping[str, Stored], family: Family) -> str:
    embedding = found.get(family.embedding)
    if embedding is not None and embedding.name != family.embedding:
        return (
            ": its tensors are those of a bare trunk (saved by AutoModel); save it with "
            "AutoModelForCausalLM, or for a reward model with AutoModelForSequenceClassification"
        )
    if any(name.endswith(_STACKED) for name in found):
        unstacked = "n = M.from_config(m.config, dtype=m.dtype); n.load_state_dict(m.state_dict()); n"
        return (
            ": its experts are stacked, as transformers has them in memory. Write each expert for itself: "
            + _write_anew(folder, f"m = {{}}; {unstacked}")
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


def _write_anew(folder: Path, model: str = "{}") -> str:
    """A line of `transformers` that does; `model` is what is saved, `{}` the one that it loads."""
    loaded = model.format(f"M.from_pretrained('{folder}', dtype='auto')")
    return (
        f"python -c \"from transformers import AutoModelForCausalLM as M; {loaded}.save_pretrained('NEW')\", "
        "copy the tokenizer's files into NEW, and name that"
    )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown
