"""Training from Python: `rs_aligner.train(reward_fn=..., prompts=..., config=...)`, as in trlX, and its kin.

The judge is a function of this process, the prompts are a list, and the rest is what `examples/train_rs.py`
does: the same config, checks, trainer, run's folder and continuation. The prompts are written into the run's
folder first, so that a folder tells all about its run. A process may call it again and again.

Left out on purpose: several ranks, and a time limit for the judge; those are the scripts' and the served
judges'.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rs_aligner import progress, stopping
from rs_aligner.api import inputs
from rs_aligner.api.inputs import TRAIN, VALIDATION, ModelSource, Rows, TextsOrRows
from rs_aligner.config import (
    ConfigError,
    EndpointConfig,
    TrainConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    load_config,
)
from rs_aligner.config.tree import plain

if TYPE_CHECKING:
    from rs_aligner.record.run import Run
    from rs_aligner.record.sinks import Logger

_logger = logging.getLogger("rs_aligner")


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        folder: the run's folder, with config, prompts, metrics, ledger and checkpoints.
        final: the trained model, a Hugging Face folder.
        metrics: the rows of `metrics.jsonl`, one a step; docs/metrics.md explains the keys.
    """

    folder: Path
    final: Path
    metrics: list[dict[str, float]]


def train(
    *,
    reward_fn: Callable[..., Any] | None = None,
    prompts: TextsOrRows | None = None,
    eval_prompts: TextsOrRows | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    model_path: ModelSource | None = None,
    output_dir: str | Path | None = None,
    metric_fn: Callable[..., Any] | None = None,
    loggers: Sequence[Logger] = (),
) -> TrainResult:
    """Train a policy by rejection sampling, in this process.

    Args:
        reward_fn: the judge: `f(prompts, responses, metadata)`; or, called with keywords, in TRL's form
            `f(prompts, completions, **columns)` or in trlX's `f(samples, prompts, outputs, **kwargs)`. Which
            one it is, its parameters say, or its attribute `reward_form`. It returns a number for each row,
            higher is better; NaN, or an exception, means that the row has no score. It is called in the
            thread that calls `train` (so that `signal.alarm` works in it, where that is the main one), with
            at most `remote_rm.max_batch_size` rows, and once before the run with two made-up ones. Nothing is
            sampled meanwhile: a judge that is slow is better served. None: the judge that `remote_rm` of the
            config names.
        prompts: to train on: texts, or rows as in a prompt file (docs/data.md), whose keys the judge gets; in
            a list, a `datasets.Dataset`, a pandas data frame or an Arrow table; or several of these with
            weights, `[0.3, rows, 0.7, others]`. None: the config's files.
        eval_prompts: held-out prompts, never trained on.
        config: overrides of the tree of `train_rs.yaml`, nested or with dotted keys, or a YAML file of it.
        model_path: the policy, where the config does not name it: a folder, or a pair (model, tokenizer) of
            transformers' objects in memory, which is saved into the run's folder first and not changed.
        output_dir: the run's folder, where the config does not name it; the next free `runs/train_001`
            otherwise. A folder that has a run is gone on with: with the same judge, prompts and settings, or
            with what `exp_manager.allow_changes` lets change (docs/continuation.md).
        metric_fn: trlX's, asked of the answers to held-out prompts with the keywords of its reward function;
            it returns a dict of lists, a number a row. The means are the figures
            `validation/metrics/<name>`.
        loggers: further sinks of the figures besides `metrics.jsonl` and, with
            `exp_manager.create_tensorboard_logger`, TensorBoard: with `log_metrics(figures, step)` and
            `finalize(status)`, as Lightning's have, closed at the end.

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
    tree = inputs.tree_from(config, output_dir=output_dir)
    train = inputs.parts_of("prompts", prompts)
    held_out = inputs.whole("eval_prompts", eval_prompts)
    keys = inputs.keys_of(tree, [row for _, rows in (*train, *held_out) for row in rows])
    judge = metrics_of = None
    if reward_fn is not None:
        from rs_aligner.reward.judges.callables import judge_of
        from rs_aligner.reward.judges.functions import smoke_test

        _refuse_other_judge(tree)
        judge = judge_of(reward_fn, keys)
        if (doubt := smoke_test(judge)) is not None:
            _logger.warning("reward_fn: %s", doubt)
    if metric_fn is not None:
        from rs_aligner.reward.judges.callables import metrics_by

        metrics_of = metrics_by(metric_fn, keys)
    files = [(TRAIN, "prompts", train), (VALIDATION, "eval_prompts", held_out)]
    with inputs.given_in_folder(tree, files, model_path) as written:
        typed = load_config(tree, TrainRSConfig)
        inputs.refuse_ranks(typed, "train")

    from rs_aligner.commands.train_rs import fit

    def run(sinks: Callable[[], Sequence[Logger]]) -> Run:
        return fit(typed, judge, loggers=sinks, given=plain(tree), metrics_of=metrics_of)

    return _carried_out(typed, run, loggers, written)


def sft(
    *,
    rows: Rows | None = None,
    eval_prompts: TextsOrRows | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    model_path: ModelSource | None = None,
    output_dir: str | Path | None = None,
    loggers: Sequence[Logger] = (),
) -> TrainResult:
    """Train a policy on given answers, in this process.

    Args:
        rows: prompts with their answers, as in the files of `train_sft.yaml`, in what `prompts` of `train`
            may be; None: the config's files.
        eval_prompts: held-out prompts, whose answers the config's `judge` scores.
        config: overrides of the tree of `train_sft.yaml`.
        model_path, output_dir, loggers: as of `train`.

    Returns:
        The run's folder, the trained policy and the figures.

    Raises:
        ValueError: config or rows cannot be used; with the key, or the argument and the row.
        KeyboardInterrupt, Stopped: as of `train`.
    """
    tree = inputs.tree_from(config, what="sft", output_dir=output_dir)
    files = [
        (TRAIN, "rows", inputs.parts_of("rows", rows, are_prompts=False)),
        (VALIDATION, "eval_prompts", inputs.whole("eval_prompts", eval_prompts)),
    ]
    with inputs.given_in_folder(tree, files, model_path) as written:
        typed = load_config(tree, TrainSFTConfig)
        inputs.refuse_ranks(typed, "sft")

    from rs_aligner.commands.train_sft import fit

    return _carried_out(typed, lambda sinks: fit(typed, loggers=sinks, given=plain(tree)), loggers, written)


def reward_model(
    *,
    pairs: Rows | None = None,
    eval_pairs: Rows | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    model_path: ModelSource | None = None,
    output_dir: str | Path | None = None,
    loggers: Sequence[Logger] = (),
) -> TrainResult:
    """Train a reward model on pairs of answers, in this process.

    Args:
        pairs: rows with `prompt`, `chosen` and `rejected`, as in the files of `train_reward_model.yaml`, in
            what `prompts` of `train` may be; None: the config's files.
        eval_pairs: held-out ones.
        config: overrides of the tree of `train_reward_model.yaml`.
        model_path, output_dir, loggers: as of `train`.

    Returns:
        The run's folder, the trained reward model and the figures.

    Raises:
        ValueError: config or pairs cannot be used; with the key, or the argument and the row.
        KeyboardInterrupt, Stopped: as of `train`.
    """
    tree = inputs.tree_from(config, what="reward_model", output_dir=output_dir)
    files = [
        (TRAIN, "pairs", inputs.parts_of("pairs", pairs, are_prompts=False)),
        (VALIDATION, "eval_pairs", inputs.whole("eval_pairs", eval_pairs, are_prompts=False)),
    ]
    with inputs.given_in_folder(tree, files, model_path) as written:
        typed = load_config(tree, TrainRewardModelConfig)
        inputs.refuse_ranks(typed, "reward_model")

    from rs_aligner.commands.train_reward_model import fit

    return _carried_out(typed, lambda sinks: fit(typed, loggers=sinks, given=plain(tree)), loggers, written)


def _carried_out(
    config: TrainConfig,
    fit: Callable[[Callable[[], Sequence[Logger]]], Run],
    loggers: Sequence[Logger],
    written: Sequence[Path],
) -> TrainResult:
    """Train until the end, or until the process is to stop."""
    from rs_aligner.record.attempts import ChangedSettings
    from rs_aligner.record.metrics import read_rows

    manager = config.exp_manager
    with (
        inputs.shown_log(),
        stopping.signals(stop_within=manager.stop_within),
        progress.bars(config.trainer.enable_progress_bar),
    ):
        began, key = time.monotonic(), "exp_manager.max_time_per_run"
        stopping.limit(manager.max_time_per_run, key=key, since=began)
        stopping.watch(Path(manager.explicit_log_dir), is_first=True, tells_others=False)
        try:
            run = fit(lambda: loggers)
        except ChangedSettings:
            inputs.remove(written)
            raise
        except stopping.Stopped as stop:
            if stopping.was_interrupted():
                raise KeyboardInterrupt(*getattr(stop, "__notes__", ())) from None
            raise
    return TrainResult(run.folder, run.final, read_rows(run.folder / "metrics.jsonl"))


def _refuse_other_judge(tree: DictConfig) -> None:
    for key in ("reward_model", "endpoints", "in_process", "judge", "token_file", "ca_file", "pad_to_length"):
        there = OmegaConf.select(tree, f"remote_rm.{key}")
        default = EndpointConfig().model_dump() if key == "reward_model" else None
        if there and there != default:
            raise ConfigError(
                [f"remote_rm.{key} is {there}, but reward_fn is the judge: leave one of the two out"]
            )
