"""The way in from Python: `rs_aligner.train(reward_fn=..., prompts=..., config=...)`, as in trlX.

The judge is a function of this process, the prompts are a list, and the rest is what `examples/train_rs.py`
does: the same config, checks, trainer, run's folder and continuation. The prompts are written into the run's
folder first, so that a folder tells all about its run. A process may call it again and again.

Left out on purpose: several ranks, loggers, and a time limit for the judge; those are the scripts' and the
served judges'.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rs_aligner import stopping
from rs_aligner.commands import build
from rs_aligner.config import ConfigError, TrainRSConfig, load_config
from rs_aligner.config.tree import plain, read_tree, tree_of
from rs_aligner.threads import wait_briefly

_logger = logging.getLogger("rs_aligner")

Row = Mapping[str, Any]
_TRAIN, _VALIDATION = "model.data.data_prefix.train", "model.data.data_prefix.validation"
_FOLDER, _MODEL = "exp_manager.explicit_log_dir", "pretrained_checkpoint.restore_from_path"


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        folder: the run's folder, with config, prompts, metrics, ledger and checkpoints.
        final: the trained policy, a Hugging Face folder.
        metrics: the rows of `metrics.jsonl`, one a step; docs/metrics.md explains the keys.
    """

    folder: Path
    final: Path
    metrics: list[dict[str, float]]


def train(
    *,
    reward_fn: Callable[..., Any] | None = None,
    prompts: Sequence[str | Row] | None = None,
    eval_prompts: Sequence[str | Row] | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    model_path: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> TrainResult:
    """Train a policy by rejection sampling, in this process.

    Args:
        reward_fn: the judge: `f(prompts, responses, metadata)`, or in trlX's form, called with keywords,
            `f(samples, prompts, outputs, **kwargs)`. It returns a number for each row, higher is better; NaN,
            or an exception, means that the row has no score. It is called in the thread that calls `train`
            (so that `signal.alarm` works in it, where that is the main one), with at most
            `remote_rm.max_batch_size` rows, and once before the run with two made-up ones. Nothing is sampled
            meanwhile: a judge that is slow is better served. None: the judge that `remote_rm` of the config
            names.
        prompts: to train on: texts, or rows as in a prompt file (`text` or `prompt`, or `messages`, or what
            `model.data.prompt_template` puts together), whose keys the judge gets. None: the config's files.
        eval_prompts: held-out prompts, never trained on.
        config: overrides of the tree of `train_rs.yaml`, nested or with dotted keys, or a YAML file of it.
        model_path: the policy, where the config does not name it.
        output_dir: the run's folder, where the config does not name it; the next free `runs/train_001`
            otherwise. A folder that has a run is gone on with: with the same judge, prompts and settings, or
            with what `exp_manager.allow_changes` lets change (docs/continuation.md).

    Returns:
        The run's folder, the trained policy and the figures.

    Raises:
        ValueError: config, prompts or judge cannot be used, or they are others than the run in the folder
            had; the message names the key and what would work.
        JudgeFailed: the judge scored too little of a step.
        KeyboardInterrupt: Ctrl-C; what is scored and trained is safe, and the same call goes on. The run
            stops at the next safe point, or at once at the second Ctrl-C.
        Stopped: the same for SIGTERM and SIGUSR1, where the program handles neither itself, and for
            `exp_manager.max_time_per_run`, which counts from this call. It is a SystemExit of status 75.
    """
    if "torch" not in sys.modules:  # which reads it when it is imported
        wait_briefly()
    tree = tree_of(config) if config is None or isinstance(config, Mapping) else read_tree(config)
    _set(tree, _MODEL, model_path, "model_path")
    _set(tree, _FOLDER, output_dir, "output_dir")
    if OmegaConf.select(tree, _FOLDER) is None:
        OmegaConf.update(tree, _FOLDER, str(_free_folder()))
    if OmegaConf.select(tree, "exp_manager.create_tensorboard_logger") is None:
        OmegaConf.update(tree, "exp_manager.create_tensorboard_logger", False)
    train_rows, held_out_rows = _rows("prompts", prompts), _rows("eval_prompts", eval_prompts)
    judge = None
    if reward_fn is not None:
        from rs_aligner.reward.judges.callables import judge_of
        from rs_aligner.reward.judges.functions import smoke_test

        _refuse_other_judge(tree)
        judge = judge_of(reward_fn, _keys([*train_rows, *held_out_rows]))
        if (doubt := smoke_test(judge)) is not None:
            _logger.warning("reward_fn: %s", doubt)
    with _prompts_in_folder(tree, train_rows, held_out_rows) as written:
        typed = load_config(tree, TrainRSConfig)
        _refuse_ranks(typed)

    from rs_aligner.commands.train_rs import fit
    from rs_aligner.record.attempts import ChangedSettings
    from rs_aligner.record.metrics import read_rows

    manager = typed.exp_manager
    with _shown_log(), stopping.signals(stop_within=manager.stop_within):
        began, key = time.monotonic(), "exp_manager.max_time_per_run"
        stopping.limit(manager.max_time_per_run, key=key, since=began)
        stopping.watch(Path(manager.explicit_log_dir), is_first=True, tells_others=False)
        try:
            run = fit(typed, judge, given=plain(tree))
        except ChangedSettings:
            _remove(written)
            raise
        except stopping.Stopped:
            if stopping.was_interrupted():
                raise KeyboardInterrupt from None
            raise
    return TrainResult(run.folder, run.final, read_rows(run.folder / "metrics.jsonl"))


def _set(tree: DictConfig, key: str, value: Any, argument: str) -> None:
    """Put an argument where the config has it, unless that says otherwise."""
    if value is None:
        return
    there = OmegaConf.select(tree, key)  # None where it is missing or ???
    if there not in (None, [], str(value)):
        raise ConfigError([f"{key} is {there} in the config, and {argument} is {value}: give one of the two"])
    OmegaConf.update(tree, key, str(value))


def _free_folder() -> Path:
    number = 1
    while (folder := Path("runs") / f"train_{number:03d}").exists():
        number += 1
    return folder


def _refuse_other_judge(tree: DictConfig) -> None:
    for key in ("reward_model", "endpoints", "in_process", "judge", "token_file", "pad_to_length"):
        there = OmegaConf.select(tree, f"remote_rm.{key}")
        default = {"name": "reward_model", "ip": "localhost", "port": 5555} if key == "reward_model" else None
        if there and there != default:
            raise ConfigError(
                [f"remote_rm.{key} is {there}, but reward_fn is the judge: leave one of the two out"]
            )


def _refuse_ranks(config: TrainRSConfig) -> None:
    import torch.distributed as dist

    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if (number := max(config.world_size, started)) > 1:
        raise ConfigError(
            [f"trainer.devices: {number} ranks, but rs_aligner.train has one: use examples/train_rs.py"]
        )
    if dist.is_initialized():
        raise ConfigError(
            [
                "torch.distributed is in use in this process, and rs_aligner.train sets it up itself: call "
                "torch.distributed.destroy_process_group() before it"
            ]
        )
    manager = config.exp_manager
    if manager.create_wandb_logger or manager.create_tensorboard_logger:
        _logger.warning("exp_manager's loggers have no effect in rs_aligner.train; see metrics.jsonl")


def _rows(argument: str, prompts: Sequence[str | Row] | None) -> list[dict[str, Any]]:
    """Prompts as rows of a prompt file."""
    if prompts is None:
        return []
    if isinstance(prompts, str | Mapping):
        raise ValueError(f"{argument} is one {type(prompts).__name__}: it should be a list of prompts")
    rows = [{"text": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
    if not rows:
        raise ValueError(f"{argument} is empty: give at least one prompt, or leave it out")
    found = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{argument}[{number}] is a {type(row).__name__}: it should be a text, or a row such as "
                '{"text": ...}'
            )
        bare = "prompt" in row and not {"text", "messages"} & set(row)
        found.append({"text": row["prompt"], **row} if bare else dict(row))
    return found


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


@contextlib.contextmanager
def _prompts_in_folder(
    tree: DictConfig, train_rows: list[Any], held_out_rows: list[Any]
) -> Iterator[list[Path]]:
    """Write prompts into the run's folder and name them in the config; nothing new stays after an error.

    What lies there already stays as it is: it may be another run's. Yields the files that were made.
    """
    folder = Path(OmegaConf.select(tree, _FOLDER))
    is_new = not folder.exists()
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, argument, rows in (
            (_TRAIN, "prompts", train_rows),
            (_VALIDATION, "eval_prompts", held_out_rows),
        ):
            if rows:
                path, made = _write(folder, argument, rows)
                written += [path] * made
                _set(tree, key, path, argument)
        yield written
    except BaseException:
        _remove(written)
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


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
def _shown_log() -> Iterator[None]:
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
