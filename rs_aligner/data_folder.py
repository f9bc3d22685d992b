"""A folder that `datasets` wrote with `save_to_disk`: what it holds, as far as its own files say.

Read without the library, which takes seconds to import and is no requirement. Left out on purpose: the rows
(`data/arrow.py`), and folders of the hub, whose files can be named one by one.
"""

from __future__ import annotations

from pathlib import Path

from rs_aligner.files import json_object_if_any

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_data_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it: one set of rows, or several splits."""
    return any((folder / name).is_file() for name in (_SPLITS, _STATE))


def data_folder_problem(folder: Path) -> str | None:
    """Why the rows of a folder cannot be read, and what would work; None where it is one set of rows."""
    if (folder / _SPLITS).is_file():
        names = list(json_object_if_any(folder / _SPLITS).get("splits", []))
        several = ", ".join(map(repr, names)) or "none"
        example = folder / str(names[0] if names else "train")
        return f"is a DatasetDict with the splits {several}; name one of them, e.g. {example}"
    if not is_data_folder(folder):
        return "is a folder"
    state = json_object_if_any(folder / _STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        return "was saved with indices beside its rows; save it again with a newer version of datasets"
    missing = [file.name for file in data_files(folder) if not file.is_file()]
    if missing:
        return f"lacks {', '.join(missing)}, which its {_STATE} names"
    return None


def data_files(folder: Path) -> list[Path]:
    """The files with the rows of a set, in order."""
    return [
        folder / str(one["filename"]) for one in json_object_if_any(folder / _STATE).get("_data_files", [])
    ]
