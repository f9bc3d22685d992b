"""All of a Hugging Face folder but its weights: config, tokenizer and chat template, copied and changed.

Left out on purpose: the weights (`huggingface.py`), and what a folder has to have (`folder.py`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rs_aligner.files import read_json_object
from rs_aligner.model.stored import DTYPES
from rs_aligner.model.tensors import read_headers
from rs_aligner.model_folder import belongs_to_a_model, is_of_weights
from rs_aligner.peft_folder import ADAPTER_CONFIG

_DTYPE_KEYS = ("dtype", "torch_dtype")  # in a config.json; before version 5 of transformers it was the second
_EXPORTED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_dtype(source: Path) -> torch.dtype:
    """The type of the weights that are made of `source`: the one that its `config.json` names.

    Where it names none that weights are trained from, it is that of its files, else float32.
    """
    config = read_json_object(source / "config.json")
    for key in _DTYPE_KEYS:
        if (named := str(config.get(key)).removeprefix("torch.")) in _EXPORTED:
            return _EXPORTED[named]
    try:
        stored = read_headers(source).values()
    except ValueError:  # in a checkpoint there is none
        return torch.float32
    return _EXPORTED.get(DTYPES.get(next(iter(stored)).dtype, ""), torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """As a `config.json` names it."""
    return str(dtype).removeprefix("torch.")


def copy_all_but_weights(
    source: Path, folder: Path, dtype: torch.dtype, changes: Mapping[str, Any] | None = None
) -> None:
    """Copy config, tokenizer and chat template of a Hugging Face folder, with changes to the config.

    The config names `dtype` as the weights' type, under the key or keys that it had for it. An `eos_token_id`
    among the changes goes into `generation_config.json`, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if belongs_to_a_model(path) and not is_of_weights(path) and path.name != ADAPTER_CONFIG:
            shutil.copyfile(path, folder / path.name)
    config = read_json_object(source / "config.json")
    keys = [key for key in _DTYPE_KEYS if key in config] or _DTYPE_KEYS[:1]
    changed = {**config, **dict.fromkeys(keys, dtype_name(dtype)), **(changes or {})}
    if changed != config:
        (folder / "config.json").write_text(json.dumps(changed, indent=2) + "\n")
    if "eos_token_id" in (changes or {}):
        _name_end_tokens(folder, changed)


def _name_end_tokens(folder: Path, config: Mapping[str, Any]) -> None:
    """Give the end tokens of a config.json to generation_config.json, which is what engines stop by."""
    path = folder / "generation_config.json"
    known = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    made = read_json_object(path) if path.is_file() else known
    path.write_text(json.dumps({**made, "eos_token_id": config["eos_token_id"]}, indent=2) + "\n")
