"""What a command would do, and whether it could, before any model is loaded: `rs-aligner plan` and `check`.

Everything is read as the command itself reads it: the config, the model's folder without its weights, the
data, users' code. A check also asks the judge and looks at the run's folder, the disk and the memory. Neither
leaves anything behind. Left out on purpose: whether the weights load and the activations have room, which
shows when they are there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.commands import attempt, build
from rs_aligner.commands.machine import check_disk, decoding_lines, fit_of_rows, fit_of_rs
from rs_aligner.commands.run_data import (
    EpochData,
    read_pair_data,
    read_prompts,
    read_rs_data,
    read_sft_data,
)
from rs_aligner.config import (
    GenerateConfig,
    JudgeConfig,
    RemoteRMConfig,
    ServeRewardConfig,
    ServeRolloutsConfig,
    TrainConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    changes,
    epoch_plan,
    num_epoch_steps,
    num_steps,
    plan,
    schedule_steps,
)
from rs_aligner.config.plan_parts import table
from rs_aligner.data import shares
from rs_aligner.record.attempts import attempt_files, compare, latest
from rs_aligner.record.format import work_in
from rs_aligner.record.room import check_open_files, check_writable_above

if TYPE_CHECKING:
    from rs_aligner.commands.fitting import Fit
    from rs_aligner.trainers.rs import RSData

Config = TrainRSConfig | TrainSFTConfig | TrainRewardModelConfig | GenerateConfig
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
MODELS = ("huggingface", "megatron_reward_model")
"""Judges that are models, which a check does not load."""


@dataclass(frozen=True)
class Plan:
    """What a command would do.

    Attributes:
        text: for people.
        data: what was read, in a line.
        found: fingerprints of the data.
        planned: how long a training would be.
        fit: its memory, beside what there is; None where nothing is trained.
    """

    text: str
    data: str
    found: Mapping[changes.Part, str]
    planned: Mapping[str, int]
    fit: Fit | None = None


def plan_of(config: Config) -> Plan:
    """Read everything but weights, and work out what would be done.

    Raises:
        ValueError: something of it cannot be used; with the key or the file.
    """
    tokenizer, positions = build.read_tokenizer(config)
    match config:
        case TrainRSConfig():
            data = read_rs_data(config, tokenizer, positions)
            fit = fit_of_rs(config, data, positions)
            text, planned = plan_of_rs(config, data, fit)
            told = f"{len(data.scored) or len(data.prompts):,} prompts, {len(data.validation):,} held out"
            return Plan(text, told, attempt.of_rs_data(config, data), planned, fit)
        case TrainSFTConfig():
            rows = read_sft_data(config, tokenizer, positions)
            return _plan_of_rows(config, rows, attempt.of_sft(rows, None), "rows")
        case TrainRewardModelConfig():
            pairs = read_pair_data(config, tokenizer, positions)
            return _plan_of_rows(config, pairs, attempt.of_preferences(pairs), "pairs")
        case GenerateConfig():
            return _plan_of_answers(config, tokenizer, positions)


def check(config: Config | ServeRewardConfig | ServeRolloutsConfig) -> Iterator[str]:
    """Check all that a command needs, as far as it shows before a model is loaded.

    Yields:
        A line for each part that is right, as soon as that is known.

    Raises:
        ValueError: something cannot be used; with the key or the file, and what would work.
        ConnectionError: no judge answers.
    """
    yield "the config"
    with _nothing_compiled():
        match config:
            case ServeRewardConfig():
                yield from _check_server(config)
            case ServeRolloutsConfig():
                yield from _check_rollout_server(config)
            case _:
                yield from _check_parts(config)


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Users' code is imported without leaving its bytecode beside it."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    told, os.environ[_NO_BYTECODE] = os.environ.get(_NO_BYTECODE), "1"  # for the judge's own process
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        os.environ.pop(_NO_BYTECODE)
        os.environ.update({_NO_BYTECODE: told} if told is not None else {})


def _check_parts(config: Config) -> Iterator[str]:
    if isinstance(config, TrainConfig):
        folder = Path(config.exp_manager.explicit_log_dir)
        check_open_files()
        check_writable_above(folder, "exp_manager.explicit_log_dir")
        yield f"the run's folder can be written: {folder}"
    if isinstance(config, GenerateConfig):
        check_writable_above(Path(config.output).parent, "output")
        yield f"the file can be written: {config.output}"
    if isinstance(config, TrainRSConfig):
        from rs_aligner.selection import chain_of

        chain_of(config.model.rs)
    made = plan_of(config)
    yield f"the model: {config.pretrained_checkpoint.restore_from_path}"
    yield f"the data: {made.data}"
    if isinstance(config, TrainConfig):
        yield check_disk(config)
    if made.fit is not None:
        yield f"the memory: {made.fit.verdict}"
    found = dict(made.found)
    for part, said, fingerprint in _check_judges(config):
        yield said
        if part is not None and fingerprint is not None:
            found[part] = fingerprint
    if isinstance(config, TrainConfig):
        yield from _check_run(config, found, made.planned)


def plan_of_rs(config: TrainRSConfig, data: RSData, fit: Fit) -> tuple[str, dict[str, int]]:
    """What rejection sampling would do with its data: for people, and how long it would be."""
    number = len(data.scored) or len(data.prompts)
    largest = max((len(group.rollouts) for group in data.scored), default=None)
    further = [*shares.lines(data.shares), *fit.lines()]
    text = plan(config, number, len(data.validation), largest, further)
    steps, optimizer_steps = num_steps(config, number), schedule_steps(config, number, largest)
    return text, {"steps": steps, "optimizer_steps": optimizer_steps}


def plan_of_epochs(
    config: TrainSFTConfig | TrainRewardModelConfig, data: EpochData[Any, Any], fit: Fit
) -> str:
    """What a training that passes over rows would do with them, for people."""
    further = [*shares.lines(data.shares), *fit.lines()]
    return epoch_plan(config, len(data.rows), len(data.held_out), further)


def _plan_of_rows(
    config: TrainSFTConfig | TrainRewardModelConfig,
    data: EpochData[Any, Any],
    found: Mapping[changes.Part, str],
    what: str,
) -> Plan:
    fit = fit_of_rows(config, data.rows)
    steps = num_epoch_steps(config, len(data.rows))
    told = f"{len(data.rows):,} {what}, {len(data.held_out):,} held out"
    planned = {"steps": steps, "optimizer_steps": steps}
    return Plan(plan_of_epochs(config, data, fit), told, found, planned, fit)


def _plan_of_answers(config: GenerateConfig, tokenizer: Any, positions: int) -> Plan:
    data, answers = config.model.data, config.model.answers
    prompts = read_prompts(data.files, config, tokenizer, positions).prompts[: data.num_prompts]
    each = answers.num_rollouts_per_prompt
    at_most = len(prompts) * each * answers.length_params.max_length
    longest = max(len(prompt.token_ids) for prompt in prompts)
    lines = [
        ("prompts", f"{len(prompts):,}, decoded {answers.rollout_micro_batch_size:,} at a time on each rank"),
        ("answers", f"{len(prompts) * each:,} ({each:,} a prompt), of {at_most:,} tokens at most"),
        *decoding_lines(config, len(prompts), longest),
        ("chosen", f"{config.choice}, of each prompt's answers"),
        ("file", config.output),
    ]
    return Plan(table(lines), f"{len(prompts):,} prompts", {}, {})


def _check_judges(config: Config) -> Iterator[tuple[changes.Part | None, str, str | None]]:
    """What there is to say of each judge, with its part of a start's fingerprints."""
    from rs_aligner.reward.client import RemoteGPTRMClient

    if isinstance(config, TrainSFTConfig):
        if config.judge is not None:
            yield None, _check_source(config.judge), None
        return
    if isinstance(config, TrainRewardModelConfig) or not getattr(config, "samples", True):
        return
    watched = config.watched_rm if isinstance(config, TrainRSConfig) else None
    judges = (("judge", changes.JUDGE, config.remote_rm), ("watched judge", changes.WATCHED, watched))
    for what, part, asked in judges:
        if asked is None:
            continue
        if asked.in_process and asked.judge is not None and _models(asked.judge):
            yield None, f"the {what}: {_check_source(asked.judge)}", None
            continue
        with RemoteGPTRMClient(asked) as client:
            client.wait_until_ready()
            yield part, f"the {what} answers{_at(asked)}", attempt.of_judge(client, asked)


def _at(asked: RemoteRMConfig) -> str:
    if asked.in_process:
        return " in this process"
    return ": " + ", ".join(server.url for server in asked.servers)


def _models(judge: JudgeConfig) -> bool:
    return any(source.name in MODELS for source in (judge, *judge.parts.values()))


def _check_source(judge: JudgeConfig) -> str:
    """A judge of this process, loaded unless it is a model."""
    from rs_aligner.reward.judges import load_judge

    if _models(judge):
        return "a model, which is not loaded here"
    with contextlib.closing(load_judge(judge)):
        return f"the judge: {judge.function or judge.name or ', '.join(judge.parts)}"


def _check_server(config: ServeRewardConfig) -> Iterator[str]:
    from rs_aligner.reward.server.serve import address_of

    yield _free(address_of(config), config.inference.port)
    yield _check_source(config.judge)


def _check_rollout_server(config: ServeRolloutsConfig) -> Iterator[str]:
    from rs_aligner.commands.serve_rollouts import prepare

    python, build, at = prepare(config)
    yield _free(at, config.inference.port)
    yield f"vLLM is there, built for a {build.upper()}: {python}"


def _free(at: tuple[str, str | None], port: int) -> str:
    address, token = at
    secret = "with a token" if token else "without a token, from this machine only"
    return f"the address is free: {address}:{port}, {secret}"


def _check_run(
    config: TrainConfig, found: Mapping[changes.Part, str], planned: Mapping[str, int]
) -> Iterator[str]:
    """Whether a run that is in the folder may go on with these settings."""
    manager = config.exp_manager
    folder = Path(manager.explicit_log_dir)
    checkpoints = sorted((folder / "checkpoints").glob("step_*"))
    if not checkpoints and not work_in(folder):
        yield "the run would be a new one"
        return
    if not manager.resume_if_exists:
        raise ValueError(
            f"exp_manager.explicit_log_dir={folder} has work of an earlier start, and "
            "exp_manager.resume_if_exists is false: choose another folder, or set it to true"
        )
    files = attempt_files(folder / "config")
    before = latest(folder / "config", manager.allow_changes)
    if before is not None:
        compare(before, attempt.attempt(config, found, planned, None), folder, manager.allow_changes)
    behind = f"behind {checkpoints[-1].name}" if checkpoints else "from the beginning"
    yield f"the run goes on {behind}, with its attempt {len(files) + 1}"
