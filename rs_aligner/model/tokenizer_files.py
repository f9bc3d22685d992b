"""A tokenizer's files, read by `transformers`, with as little of it imported as the folder allows.

Left out on purpose: what the project asks of a tokenizer (`tokenizer.py`).
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers

from rs_aligner.files import checksum, checksums_of_files, read_json_object

_OF_ANY_FILE = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""What the class of any `tokenizer.json` is called, in versions 5 and 4."""


def read_files(folder: Path) -> Any:
    """The tokenizer as `transformers` reads it.

    Where the folder says which class it is, transformers gets as much of the config as that choice takes: to
    read it into its own class, it imports its models' machinery and torch's compiler. And where that is the
    class of any `tokenizer.json`, which is what it would choose, it need not read the files of all its models
    to choose.
    """
    named = _json(folder / "tokenizer_config.json")
    config = _json(folder / "config.json")
    is_any, is_llama = named.get("tokenizer_class") in _OF_ANY_FILE, config.get("model_type") == "llama"
    if is_any and is_llama and "auto_map" not in named and (folder / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    auto = transformers.AutoTokenizer
    if not named.get("tokenizer_class") or "auto_map" in named or not config.get("model_type"):
        return auto.from_pretrained(folder, local_files_only=True)
    given = transformers.PretrainedConfig()
    given.model_type, given._name_or_path = str(config["model_type"]), str(folder)
    if "model_name" in config:
        given.model_name = config["model_name"]
    return auto.from_pretrained(folder, local_files_only=True, config=given)


def named_end_tokens(folder: Path) -> tuple[int, ...]:
    """The end tokens of `generation_config.json`, else of `config.json`."""
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        if value is not None:
            return tuple(dict.fromkeys(value if isinstance(value, list) else [value]))
    return ()


def checksum_of_tokenizer(folder: Path) -> str:
    """Of all files that a tokenizer may be read from, and of the libraries that read it."""
    kinds = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in kinds and path.is_file())
    names = [str(path.relative_to(folder)) for path in paths]
    versions = [version(name) for name in ("transformers", "tokenizers", "jinja2")]
    return checksum(json.dumps([versions, names, checksums_of_files(paths)]).encode())


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
