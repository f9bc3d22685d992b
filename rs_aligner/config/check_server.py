"""What relates several keys of a judge and of its server; a line for each problem.

As in `check.py`, where the trainings are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from rs_aligner.config.base import FUNCTION, function_problems, problem
from rs_aligner.config.common import JudgeConfig, JudgeSource
from rs_aligner.config.schema import ServeRewardConfig

_logger = logging.getLogger("rs_aligner")


def judge_problems(key: str, judge: JudgeSource) -> Iterator[str]:
    """What is wrong with a judge's config, and with the function that it names."""
    parts = judge.parts if isinstance(judge, JudgeConfig) else {}
    asked = {"function": judge.function, "name": judge.name, "parts": parts or None}
    named = [name for name, value in asked.items() if value is not None]
    if len(named) != 1:
        yield (
            f"{key}: {' and '.join(named) or 'nothing'} is set; set one of {key}.name, e.g. to exact_answer, "
            f"{key}.function, to {FUNCTION}"
            + (f", and {key}.parts, a judge by each name" if isinstance(judge, JudgeConfig) else "")
        )
    for name, part in parts.items():
        yield from judge_problems(f"{key}.parts.{name}", part)
    if judge.function is not None:
        yield from function_problems(f"{key}.function", judge.function)


def server_problems(config: ServeRewardConfig) -> Iterator[str]:
    """What is wrong with the server's other sections."""
    yield from _standardization(config)
    yield from _files(config)


def _standardization(config: ServeRewardConfig) -> Iterator[str]:
    standard = config.model.reward_standardization
    for name, value in (("mean", standard.mean), ("std", standard.std)):
        if standard.enable and value is None:
            yield f"model.reward_standardization.{name} must be set: reward_standardization is enabled"
        if not standard.enable and value is not None:
            _logger.warning("model.reward_standardization.%s has no effect: it is not enabled", name)


def _files(config: ServeRewardConfig) -> Iterator[str]:
    files = {"inference.token_file": config.inference.token_file, "check_data": config.check_data}
    for key, file in files.items():
        if file is not None and not Path(file).is_file():
            yield problem(key, file, f"there is no such file (relative to {Path.cwd()})")
    for key, folder in {"tokenizer": config.tokenizer, "check_policy": config.check_policy}.items():
        if folder is not None and not Path(folder).is_dir():
            yield problem(key, folder, "should be the policy's Hugging Face folder")
    for key in ("check_policy", "check_data"):
        if getattr(config, key) is not None and not config.check:
            yield problem(
                key, getattr(config, key), "plays a part in a check only; set check=true, or drop it"
            )
