"""Config trees that do not come from Hydra: a dict of overrides, or a YAML file.

Keys may be nested or dotted, or both. A YAML file may name others under `defaults`, as the files in
examples/conf do: `train_rs` is beside it, `/train_rs` in the nearest folder above that has it. Left out on
purpose: everything else that Hydra's `defaults` can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rs_aligner.config.base import ConfigError


def tree_of(overrides: Mapping[str, Any] | None) -> DictConfig:
    """A tree of overrides; `load_config` fills in the defaults.

    Args:
        overrides: nested, `{"model": {"seed": 1}}`, or with dotted keys, `{"model.seed": 1}`.

    Raises:
        ConfigError: a key is not a text, or one is both a section and a value.
    """
    tree = OmegaConf.create({})
    for key, value in _flat(overrides or {}):
        try:
            OmegaConf.update(tree, key, value, merge=False)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError([f"{key} cannot be set to {value!r}: {reason}"]) from None
    return tree


def read_tree(file: str | Path) -> DictConfig:
    """A tree from a YAML file, with what it names under `defaults`.

    Args:
        file: a path; `.yaml` may be left out.

    Raises:
        ConfigError: there is no such file, or it is not a YAML file of a tree.
    """
    path = Path(file)
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    if not path.is_file():
        raise ConfigError([f"config: there is no file {path} (relative to {Path.cwd()})"])
    try:
        tree = OmegaConf.load(path)
    except Exception as error:  # the YAML parser raises its own
        raise ConfigError([f"config: {path} cannot be read: {error}"]) from None
    if not isinstance(tree, DictConfig):
        raise ConfigError([f"config: {path} should hold keys and values, not a {type(tree).__name__}"])
    parents = tree.pop("defaults", [])
    tree.pop("hydra", None)
    merged = OmegaConf.create({})
    for parent in [*parents, *(() if "_self_" in parents else ("_self_",))]:
        if not isinstance(parent, str):
            raise ConfigError([f"config: {path}: defaults has {parent}; only names of files beside it work"])
        merged.merge_with(tree if parent == "_self_" else read_tree(_file_of(parent, path)))
    return merged


def plain(tree: DictConfig) -> dict[str, Any]:
    """A tree as plain keys and values, with what its values refer to put in."""
    found = OmegaConf.to_container(tree, resolve=True)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _file_of(parent: str, path: Path) -> Path:
    """Where a file that `path` names under `defaults` is."""
    if not parent.startswith("/"):
        return path.parent / f"{parent}.yaml"
    above = [folder / f"{parent[1:]}.yaml" for folder in path.resolve().parents]
    return next((file for file in above if file.is_file()), above[0])


def _flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise ConfigError([f"config: {prefix}{key} should be a text, a key of train_rs.yaml"])
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value) if isinstance(value, Path) else value
