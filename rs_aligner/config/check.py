"""What relates several keys, or a key and the file system.

Each check is a generator of problem lines, so that one start shows all that is wrong. Types and
bounds of single values are in the sections themselves; what concerns sampling is in `check_sampling.py`,
judges and their server in `check_server.py`. Left out on purpose: what needs torch, such as whether there
is a GPU, and whether the judge answers; both come right after.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rs_aligner.config.base import problem
from rs_aligner.config.check_sampling import (
    length_problems,
    rs_problems,
    sampling_problems,
    steps_problems,
)
from rs_aligner.config.check_server import judge_problems, server_problems
from rs_aligner.config.common import ExpManagerBase, ModelBase
from rs_aligner.config.generate import GenerateConfig, check_generate
from rs_aligner.config.remote import check_remote
from rs_aligner.config.reward_model import TrainRewardModelConfig
from rs_aligner.config.schema import ServeRewardConfig, TrainConfig, TrainRSConfig, TrainSFTConfig
from rs_aligner.files import hugging_face_part
from rs_aligner.model_folder import problem_with

_logger = logging.getLogger("rs_aligner")


def check(config: TrainConfig | ServeRewardConfig | GenerateConfig) -> list[str]:
    """The problems of a config whose values are each valid, a line each; empty if it can run."""
    if isinstance(config, GenerateConfig):
        return [*_policy(config), *_generate(config), *check_generate(config)]
    if isinstance(config, ServeRewardConfig):
        return [*judge_problems("judge", config.judge), *server_problems(config)]
    lines = [*_layout(config), *_model(config), *_run_folder(config.exp_manager)]
    lines += _policy(config)
    lines += _files("model.data.data_prefix.train", config.model.data.data_prefix.train)
    lines += _files("model.data.data_prefix.validation", config.model.data.data_prefix.validation)
    match config:
        case TrainRSConfig():
            lines += rs_problems(config)
        case TrainSFTConfig():
            lines += _sft(config)
        case TrainRewardModelConfig():
            lines += _pairs(config)
    return lines


def model_positions(folder: str) -> int | None:
    """The number of positions that the policy in `folder` was made for, if its config.json tells."""
    value = _model_json(folder).get("max_position_embeddings")
    return value if isinstance(value, int) else None


def _layout(config: TrainConfig) -> Iterator[str]:
    model, world = config.model, config.world_size
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    if world % (tp * pp):
        nodes, devices = config.trainer.num_nodes, config.trainer.devices
        yield problem(
            "trainer.devices",
            devices,
            f"{nodes} x {devices} = {world} ranks should be a multiple of model.tensor_model_parallel_size x "
            f"model.pipeline_model_parallel_size = {tp} x {pp} = {tp * pp}",
        )
        return
    unit = model.micro_batch_size * config.data_parallel_size
    if model.global_batch_size % unit:
        below = model.global_batch_size // unit * unit
        yield problem(
            "model.global_batch_size",
            model.global_batch_size,
            "should be a multiple of model.micro_batch_size x data-parallel size = "
            f"{model.micro_batch_size} x {config.data_parallel_size} = {unit}, for example {below or unit}",
        )


def _model(config: TrainConfig) -> Iterator[str]:
    model: ModelBase = config.model
    if model.sequence_parallel and model.tensor_model_parallel_size == 1:
        yield problem(
            "model.sequence_parallel", True, "needs model.tensor_model_parallel_size above 1; set it to false"
        )
    sched = model.optim.sched
    precision = config.trainer.precision
    if model.precision is not None and model.precision != precision:
        yield problem(
            "model.precision", model.precision, f"should be trainer.precision = {precision}, or null"
        )
    if sched.name == "CosineAnnealing" and (sched.min_lr or 0) > model.optim.lr:
        yield problem(
            "model.optim.sched.min_lr", sched.min_lr, f"should be at most model.optim.lr = {model.optim.lr}"
        )


def _run_folder(manager: ExpManagerBase) -> Iterator[str]:
    if Path(manager.explicit_log_dir).exists() and not Path(manager.explicit_log_dir).is_dir():
        yield problem("exp_manager.explicit_log_dir", manager.explicit_log_dir, "is a file; name a folder")
    params = manager.checkpoint_callback_params
    if params.save_top_k < -1:
        key = "exp_manager.checkpoint_callback_params.save_top_k"
        yield problem(key, params.save_top_k, "should be -1 (keep all), 0 (only the newest) or more")


def _policy(config: TrainConfig | GenerateConfig) -> Iterator[str]:
    key, path = "pretrained_checkpoint.restore_from_path", config.pretrained_checkpoint.restore_from_path
    if (why := problem_with(path)) is not None:
        yield problem(key, path, why)
    else:
        yield from _fits_policy(config, _model_json(path))


def _fits_policy(config: TrainConfig | GenerateConfig, made: dict[str, Any]) -> Iterator[str]:
    """Sizes against the policy's own config.json, as far as it tells them."""
    model = config.model
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    heads, layers = made.get("num_attention_heads"), made.get("num_hidden_layers")
    groups, positions = made.get("num_key_value_heads"), made.get("max_position_embeddings")
    if isinstance(heads, int) and heads % tp:
        key = "model.tensor_model_parallel_size"
        yield problem(key, tp, f"should divide the policy's {heads} attention heads")
    elif isinstance(groups, int) and groups % tp:
        key = "model.tensor_model_parallel_size"
        yield problem(key, tp, f"should divide the policy's {groups} key/value heads")
    if isinstance(layers, int) and layers % pp:
        yield problem("model.pipeline_model_parallel_size", pp, f"should divide the policy's {layers} layers")
    if not isinstance(positions, int):
        return
    if model.encoder_seq_length is not None and model.encoder_seq_length > positions:
        key = "model.encoder_seq_length"
        yield problem(key, model.encoder_seq_length, f"the policy was made for at most {positions} positions")
    if not isinstance(config, TrainRSConfig | TrainSFTConfig | GenerateConfig):
        return  # nothing is sampled
    if not isinstance(config, GenerateConfig) and not config.samples:
        return
    section = {TrainRSConfig: "model.rs", TrainSFTConfig: "model.sft"}.get(type(config), "model.answers")
    lengths = config.length_params
    room = model.sequence_length(positions)
    if lengths.max_length >= room:
        yield problem(
            f"{section}.length_params.max_length",
            lengths.max_length,
            f"should leave room for the prompt: prompt and response together have at most {room} tokens",
        )


def _files(key: str, files: tuple[str, ...]) -> Iterator[str]:
    for name in files:
        if not Path(name).is_file():
            what = "is a folder" if Path(name).is_dir() else "is not there"
            yield problem(key, name, f"{what}; name JSON Lines files (relative to {Path.cwd()})")


def _sft(config: TrainSFTConfig) -> Iterator[str]:
    sft, data = config.model.sft, config.model.data.data_prefix
    if not data.train:
        yield 'model.data.data_prefix.train must be set: a file of {"prompt", "response"} rows, or a list'
    yield from steps_problems("trainer.sft.max_steps", config.trainer.sft.max_steps)
    yield from sampling_problems("model.sft.sampling_params", sft.sampling_params)
    yield from length_problems("model.sft.length_params", sft.length_params)
    if config.judge is None and data.validation:
        _logger.warning("model.data.data_prefix.validation is not looked at without a judge to score by")
    if config.judge is not None:
        yield from judge_problems("judge", config.judge)
        if not data.validation:
            yield "model.data.data_prefix.validation must be set: the judge scores responses to its prompts"
    if config.exp_manager.checkpoint_callback_params.figure == "validation/watched":
        key = "exp_manager.checkpoint_callback_params.monitor"
        yield problem(
            key, "validation/watched", "there is no watched judge here; set it to validation/reward"
        )
    stop = config.trainer.sft.stop_at_validation
    if stop is not None and (config.judge is None or config.trainer.sft.val_check_interval is None):
        missing = "judge" if config.judge is None else "trainer.sft.val_check_interval"
        yield problem("trainer.sft.stop_at_validation", stop, f"needs {missing}, for a held-out score")


def _pairs(config: TrainRewardModelConfig) -> Iterator[str]:
    if not config.model.data.data_prefix.train:
        rows = '{"prompt", "chosen", "rejected"}'
        yield f"model.data.data_prefix.train must be set: a file of {rows} rows, or a list"
    yield from steps_problems("trainer.rm.max_steps", config.trainer.rm.max_steps)
    params = config.exp_manager.checkpoint_callback_params
    better = "max" if params.monitor == "validation/accuracy" else "min"
    if params.mode != better:
        key = "exp_manager.checkpoint_callback_params.mode"
        yield problem(key, params.mode, f"should be {better}, since {params.monitor} is monitored")


def _generate(config: GenerateConfig) -> Iterator[str]:
    yield from _files("model.data.files", config.model.data.files)
    yield from sampling_problems("model.answers.sampling_params", config.model.answers.sampling_params)
    yield from length_problems("model.answers.length_params", config.length_params)
    if config.remote_rm is not None:
        yield from check_remote("remote_rm", config.remote_rm)
        if config.remote_rm.judge is not None:
            yield from judge_problems("remote_rm.judge", config.remote_rm.judge)


def _model_json(folder: str) -> dict[str, Any]:
    """The policy's config.json, or nothing where it cannot be read: loading it tells what is wrong."""
    try:
        content = json.loads((hugging_face_part(Path(folder)) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
