"""What relates several keys of what samples: a run of rejection sampling, its held-out prompts, its judges.

The parts of a recipe have checks of their own beside their sections (`chain.py`, `objective.py`, `pools.py`),
which are called here. Left out on purpose: what all trainings have in common (`check.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from rs_aligner.config.base import problem
from rs_aligner.config.chain import check_selection
from rs_aligner.config.check_server import judge_problems
from rs_aligner.config.common import LengthParams, SamplingParams
from rs_aligner.config.objective import check_objective
from rs_aligner.config.pools import check_pools
from rs_aligner.config.remote import check_remote, check_watched
from rs_aligner.config.rs import RSConfig
from rs_aligner.config.schema import TrainRSConfig

_logger = logging.getLogger("rs_aligner")


def rs_problems(config: TrainRSConfig) -> Iterator[str]:
    """What is wrong with a run of rejection sampling, beside what all trainings have in common."""
    model, rs = config.model, config.model.rs
    yield from _prompts(config)
    bound = rs.most_rollouts
    if bound is not None and rs.top_n_rollouts > bound[1]:
        most = f"should be at most {bound[0]} = {bound[1]}"
        yield problem("model.rs.top_n_rollouts", rs.top_n_rollouts, most)
    yield from check_selection(
        rs.selection, top_n=rs.top_n_rollouts, min_reward=rs.min_reward, most_rollouts=bound
    )
    yield from steps_problems("trainer.rs.max_steps", config.trainer.rs.max_steps)
    yield from sampling_problems("model.rs.sampling_params", rs.sampling_params)
    yield from sampling_problems("model.rs.val_sampling_params", rs.val_sampling_params)
    yield from length_problems("model.rs.length_params", rs.length_params)
    yield from check_objective(rs.objective, bound)
    yield from _offline(rs)
    _warn_of_equal_rollouts(rs)
    yield from check_pools(rs)
    yield from _held_out(config)
    for name, remote in (("remote_rm", config.remote_rm), ("watched_rm", config.watched_rm)):
        if remote is None:
            continue
        yield from (check_watched if name == "watched_rm" else check_remote)(name, remote)
        if remote.judge is not None:
            yield from judge_problems(f"{name}.judge", remote.judge)
        pad, longest = remote.pad_to_length, model.encoder_seq_length
        if pad is not None and longest is not None and pad < longest:
            key = f"{name}.pad_to_length"
            yield problem(key, pad, f"should be null or at least {longest} (model.encoder_seq_length)")


def _prompts(config: TrainRSConfig) -> Iterator[str]:
    train, offline = config.model.data.data_prefix.train, config.model.rs.offline
    if not train and not offline:
        instead = "or model.rs.offline, to train on scored rollouts"
        yield f"model.data.data_prefix.train must be set: a file of prompts, or a list of files; {instead}"
    if train and offline:
        nothing = "nothing is sampled with model.rs.offline; set model.data.data_prefix.train=[]"
        yield problem("model.data.data_prefix.train", list(train), nothing)


def _offline(rs: RSConfig) -> Iterator[str]:
    """Rollouts that are read have to be there, and cannot do all that sampled ones can."""
    for name in rs.offline:
        if not Path(name).exists():
            there = f"is not there; name files, or the rollouts folder of a run (relative to {Path.cwd()})"
            yield problem("model.rs.offline", name, there)
        elif rs.objective.clip is not None and Path(name).is_file():
            what = f"needs the sampling policy's log-probabilities, which the file {name} does not have"
            instead = "set it to null, or name a run's rollouts folder in model.rs.offline"
            yield problem("model.rs.objective.clip", rs.objective.clip, f"{what}; {instead}")
    if rs.offline and rs.pool.max_staleness:
        again = "the rollouts of model.rs.offline come again in every epoch; set it to 0"
        yield problem("model.rs.pool.max_staleness", rs.pool.max_staleness, again)


def _held_out(config: TrainRSConfig) -> Iterator[str]:
    """What needs a figure of held-out prompts."""
    params, loop = config.exp_manager.checkpoint_callback_params, config.trainer.rs
    if params.figure == "validation/watched" and config.watched_rm is None:
        key = "exp_manager.checkpoint_callback_params.monitor"
        yield problem(key, params.monitor, "needs a watched judge; set watched_rm, or monitor another figure")
    if loop.patience is None:
        return
    if not config.model.data.data_prefix.validation or loop.val_check_interval is None:
        needs = "needs held-out figures; set model.data.data_prefix.validation and val_check_interval"
        yield problem("trainer.rs.patience", loop.patience, needs)
    if params.save_top_k == 0:
        key = "exp_manager.checkpoint_callback_params.save_top_k"
        yield problem(key, 0, "trainer.rs.patience needs the best checkpoint; set it to 1 or more")


def _warn_of_equal_rollouts(rs: RSConfig) -> None:
    for name, sampling, number in (
        ("num_rollouts_per_prompt", rs.sampling_params, rs.num_rollouts_per_prompt),
        ("num_val_rollouts_per_prompt", rs.val_sampling_params, rs.num_val_rollouts_per_prompt),
    ):
        if sampling.use_greedy and number > 1:
            _logger.warning("model.rs.%s is %d, but greedy rollouts of a prompt are all equal", name, number)


def steps_problems(key: str, max_steps: int) -> Iterator[str]:
    """The length of a run."""
    if max_steps != -1 and max_steps < 1:
        yield problem(key, max_steps, "should be at least 1, or -1 to leave the end to max_epochs")


def sampling_problems(key: str, sampling: SamplingParams) -> Iterator[str]:
    """How the next token is drawn."""
    if sampling.temperature == 0 and not sampling.use_greedy:
        yield problem(f"{key}.temperature", 0, f"should be above 0, or {key}.use_greedy should be true")


def length_problems(key: str, lengths: LengthParams) -> Iterator[str]:
    """The bounds of a response."""
    if lengths.min_length > lengths.max_length:
        most = f"should be at most {key}.max_length = {lengths.max_length}"
        yield problem(f"{key}.min_length", lengths.min_length, most)
