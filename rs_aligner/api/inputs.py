"""What calls from Python have in common: arguments into a config, objects into files of the run's folder.

Left out on purpose: what a call does with its config.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rs_aligner.api.tables import rows_of_table
from rs_aligner.commands import build
from rs_aligner.config import ConfigError, TrainConfig
from rs_aligner.config.generate import GenerateConfig
from rs_aligner.config.tree import read_tree, tree_of
from rs_aligner.data.shapes import as_prompt
from rs_aligner.files import checksum_of_file
from rs_aligner.threads import wait_briefly

_logger = logging.getLogger("rs_aligner")

Row = Mapping[str, Any]
Rows = Any
"""Rows: a list, a `datasets.Dataset`, a pandas data frame, an Arrow table."""
TextsOrRows = Any
"""Rows, or a list with texts."""
ModelSource = str | Path | tuple[Any, Any]
"""A model folder, or a model with its tokenizer."""
Parts = list[tuple[float | None, list[dict[str, Any]]]]
"""Rows of a file each, with its weight where it has one."""
Given = tuple[str, str, Parts]
"""Rows for files: the key that names these, the argument that they came by, and the rows."""
TRAIN, VALIDATION = "model.data.data_prefix.train", "model.data.data_prefix.validation"
FOLDER, MODEL = "exp_manager.explicit_log_dir", "pretrained_checkpoint.restore_from_path"


def set_key(tree: DictConfig, key: str, value: Any, argument: str) -> None:
    """Put an argument where the config has it, unless that says otherwise."""
    if value is None:
        return
    there = OmegaConf.select(tree, key)  # None where it is missing or ???
    put = list(map(str, value)) if isinstance(value, list) else str(value)
    if there not in (None, [], put):
        raise ConfigError([f"{key} is {there} in the config, and {argument} is {value}: give one of the two"])
    OmegaConf.update(tree, key, put)


def tree_from(
    config: Mapping[str, Any] | str | Path | None,
    *,
    what: str = "train",
    output_dir: str | Path | None = None,
) -> DictConfig:
    """The config's tree, with the arguments in it, and a folder for the run."""
    if "torch" not in sys.modules:  # which reads it when it is imported
        wait_briefly()
    tree = tree_of(config) if config is None or isinstance(config, Mapping) else read_tree(config)
    set_key(tree, FOLDER, output_dir, "output_dir")
    if OmegaConf.select(tree, FOLDER) is None:
        OmegaConf.update(tree, FOLDER, str(_free_folder(what)))
    if OmegaConf.select(tree, "exp_manager.create_tensorboard_logger") is None:
        OmegaConf.update(tree, "exp_manager.create_tensorboard_logger", False)
    return tree


def _free_folder(what: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{what}_{number:03d}").exists():
        number += 1
    return folder


def refuse_ranks(config: TrainConfig | GenerateConfig, name: str) -> None:
    """See that one rank is enough, and that this process can be it.

    Raises:
        ConfigError: it cannot.
    """
    import torch.distributed as dist

    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if (number := max(config.world_size, started)) > 1:
        instead = f"rs_aligner.{name} has one: use `rs-aligner {name.replace('_', '-')}`"
        raise ConfigError([f"trainer.devices: {number} ranks, but {instead}"])
    if dist.is_initialized():
        raise ConfigError(
            [
                f"torch.distributed is in use in this process, and rs_aligner.{name} sets it up itself: call "
                "torch.distributed.destroy_process_group() before it"
            ]
        )


def rows_of(argument: str, given: Any, *, are_prompts: bool = True) -> list[dict[str, Any]]:
    """Prompts, or other rows, as rows of a file.

    Args:
        argument: by which they came, for messages.
        given: texts and rows, or a table of them: a `datasets.Dataset`, a pandas data frame, an Arrow table.
        are_prompts: whether a row is a prompt.

    Raises:
        ValueError: it is neither, or empty.
    """
    if given is None:
        return []
    table = rows_of_table(argument, given)
    if table is None and isinstance(given, str | Mapping):
        raise ValueError(f"{argument} is one {type(given).__name__}: it should be a list of prompts")
    rows = [{"text": one} if isinstance(one, str) else one for one in (given if table is None else table)]
    if not rows:
        raise ValueError(f"{argument} is empty: give at least one prompt, or leave it out")
    found = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{argument}[{number}] is a {type(row).__name__}: it should be a text, or a row such as "
                '{"text": ...}'
            )
        bare = are_prompts and isinstance(row.get("prompt"), str) and not {"text", "messages"} & set(row)
        found.append({"text": row["prompt"], **row} if bare else dict(row))
    return found


def parts_of(argument: str, given: Any, *, are_prompts: bool = True) -> Parts:
    """What is trained on, as rows of files: of one, or of several that weights stand before.

    Args:
        argument: by which they came, for messages.
        given: as for `rows_of`; or weights and such rows in turns, `[0.3, rows, 0.7, others]`.
        are_prompts: whether a row is a prompt.

    Raises:
        ValueError: as `rows_of`.
    """
    if isinstance(given, list | tuple) and given and len(given) % 2 == 0:
        weights, rows = given[::2], given[1::2]
        if all(isinstance(one, int | float) and not isinstance(one, bool) for one in weights):
            return [
                (float(weight), rows_of(f"{argument}[{2 * number + 1}]", some, are_prompts=are_prompts))
                for number, (weight, some) in enumerate(zip(weights, rows, strict=True))
            ]
    return whole(argument, given, are_prompts=are_prompts)


def whole(argument: str, given: Any, *, are_prompts: bool = True) -> Parts:
    """Rows of one file, or of none; as `rows_of`."""
    found = rows_of(argument, given, are_prompts=are_prompts)
    return [(None, found)] if found else []


def keys_of(tree: DictConfig, rows: Sequence[Row]) -> list[str]:
    """All keys that the judge gets of these rows, once they are read as `model.data` of the config says."""
    columns = OmegaConf.select(tree, "model.data.columns") or {}
    keys = dict.fromkeys(str(name) for name in columns)
    is_ours = OmegaConf.select(tree, "model.data.prompt_template") is not None
    for row in rows:
        with contextlib.suppress(ValueError):  # told of when it is read
            keys |= dict.fromkeys(row if is_ours else as_prompt("", dict(row)))
    return list(keys)


@contextlib.contextmanager
def given_in_folder(
    tree: DictConfig, given: Sequence[Given], model: ModelSource | None = None
) -> Iterator[list[Path]]:
    """Write what was given as objects into the run's folder, and name it in the config.

    What lies there already stays as it is: it may be another run's. Yields what was made; nothing of that
    stays after an error.

    Args:
        tree: the config, which is changed.
        given: rows of files.
        model: a folder, or a model with its tokenizer, both with `save_pretrained`; None for the config's.
    """
    folder = Path(OmegaConf.select(tree, FOLDER))
    is_new = not folder.exists()
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(model, tuple):
            model, made = _save(folder, model)
            written += [model] * made
        set_key(tree, MODEL, model, "model_path")
        for key, argument, parts in given:
            named: list[Any] = []
            for weight, rows in parts:
                path, made = _write(folder, argument, rows)
                written += [path] * made
                named += [path] if weight is None else [weight, path]
            if parts:
                set_key(tree, key, named if len(named) > 1 else named[0], argument)
        yield written
    except BaseException:
        remove(written)
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def remove(made: Sequence[Path]) -> None:
    """Remove files and folders that were made."""
    for path in made:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _save(folder: Path, pair: tuple[Any, ...]) -> tuple[Path, bool]:
    """Save a model to `policy_given`, or to the next name that is free or holds this very model.

    Returns:
        The folder, and whether it was made.
    """
    if len(pair) != 2 or not all(callable(getattr(one, "save_pretrained", None)) for one in pair):
        given = ", ".join(type(one).__name__ for one in pair)
        raise ConfigError(
            [f"model_path is ({given}): it should be a folder, or a model and its tokenizer of transformers"]
        )
    unfinished = Path(tempfile.mkdtemp(prefix=".policy_given_", dir=folder))
    try:
        for one in pair:
            one.save_pretrained(unfinished)
        for number in itertools.count(1):
            path = folder / ("policy_given" if number == 1 else f"policy_given_{number}")
            if not path.exists():
                unfinished.chmod(0o755)
                return unfinished.rename(path), True
            if _sums(path) == _sums(unfinished):
                return path, False
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    raise AssertionError("numbers do not end")


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: checksum_of_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _write(folder: Path, argument: str, rows: list[Any]) -> tuple[Path, bool]:
    """Write rows to `prompts.jsonl`, or to the next name that is free or has these very rows.

    Returns:
        The file, and whether it was made.
    """
    lines = []
    for number, row in enumerate(rows):
        try:
            lines.append(json.dumps(row, allow_nan=False).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise ConfigError([f"{argument}[{number}] cannot be written as JSON: {error}"]) from None
    content = b"".join(lines)
    for number in itertools.count(1):
        path = folder / (f"{argument}.jsonl" if number == 1 else f"{argument}_{number}.jsonl")
        try:
            with path.open("xb") as file:
                file.write(content)
            return path, True
        except FileExistsError:
            if path.read_bytes() == content:
                return path, False
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
    """Show the package's log, unless the program has its own way with logs."""
    level = _logger.level
    handler = None if _logger.hasHandlers() else build.log_handler()
    try:
        if handler is not None:
            _logger.addHandler(handler)
            _logger.setLevel(logging.INFO)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(megatron|torch)\.")
            yield
    finally:
        if handler is not None:
            _logger.removeHandler(handler)
            _logger.setLevel(level)
