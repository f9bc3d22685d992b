"""A command's config composed by Hydra: once, where its compose API comes to what `hydra.main` would.

`hydra.main` composes a config twice, the first time to see whether it asks for several runs. Whatever asks
something of Hydra itself, an option, a key or a user's file, is left to it. Left out on purpose: what the
config means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.cli.arguments import Arguments, config_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

OPTIONS = {"--config-name", "--config-dir", "--config-path"}
"""Hydra's options that say no more than which config is meant."""


def compose_once(given: Arguments, config: str, folders: Sequence[Path]) -> DictConfig | None:
    """The config as `hydra.main` would hand it over, or None where that has to do it.

    Args:
        given: the arguments.
        config: the name of the config that is meant where they name none.
        folders: where it is looked for, in this order.

    Raises:
        HydraException, OmegaConfBaseException: it cannot be composed.
    """
    name = given.options.get("--config-name", config)
    ordered = _primary_first(name.removesuffix(".yaml"), folders)
    speaks_of_hydra = any("hydra" in one for one in given.overrides)
    if not set(given.options) <= OPTIONS or given.switches or speaks_of_hydra or not ordered:
        return None

    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    from rs_aligner.config import open_overrides

    first, *others = (folder.absolute() for folder in ordered)
    found = ", ".join(f'"file://{folder}"' for folder in others)
    overrides = [*open_overrides(given.overrides), *([f"hydra.searchpath=[{found}]"] if others else [])]
    with initialize_config_dir(str(first), job_name="rs_aligner", version_base=None):
        tree = compose(name, overrides, return_hydra_config=True)
    if not _asks_for_nothing(tree.hydra):
        return None
    with open_dict(tree):
        del tree["hydra"]
    return tree


def _primary_first(name: str, folders: Sequence[Path]) -> list[Path]:
    """The folders with the one that has the config in front, where the compose API looks for it.

    There are none where the order would say which of two files of a name is read, or where the config says
    itself in which folders else to look.
    """
    there = next((one for one in folders if (one / f"{name}.yaml").is_file()), None)
    if there is None or "searchpath" in (there / f"{name}.yaml").read_text(errors="replace"):
        return []
    names = [config for folder in folders for config in config_names(folder)]
    if there != folders[0] and len(names) > len(set(names)):
        return []
    return [there, *(folder for folder in folders if folder != there)]


def _asks_for_nothing(hydra: Any) -> bool:
    """Whether Hydra is to do nothing besides, as our configs have it."""
    doing = (hydra.mode, hydra.run.dir, hydra.output_subdir, hydra.job.chdir, hydra.verbose)
    rest = (hydra.callbacks, hydra.job.env_set, hydra.job.env_copy, hydra.job_logging.root.handlers)
    return doing == (None, ".", None, None, False) and not any(rest)
