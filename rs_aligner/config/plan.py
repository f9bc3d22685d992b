"""What a run is going to do, in numbers, before it does it.

Pure arithmetic on the config and the number of prompts. Left out for now: memory, which depends on
the policy's sizes.
"""

from __future__ import annotations

from rs_aligner.config.chain import in_words
from rs_aligner.config.schema import TrainRSConfig


def draws_per_epoch(config: TrainRSConfig, num_prompts: int) -> int:
    """Times that prompts are drawn until each of `num_prompts` came once; the last draw may have fewer."""
    return -(-num_prompts // config.model.rs.num_rollout_samples)


def steps_per_epoch(config: TrainRSConfig, num_prompts: int) -> int:
    """Steps that show every one of `num_prompts` prompts; each draw is good for `pool.improve_steps`."""
    return draws_per_epoch(config, num_prompts) * config.model.rs.pool.improve_steps


def num_steps(config: TrainRSConfig, num_prompts: int) -> int:
    """Steps of the whole run: all epochs, or `trainer.rs.max_steps` if that is less."""
    steps = config.trainer.rs.max_epochs * steps_per_epoch(config, num_prompts)
    return steps if config.trainer.rs.max_steps == -1 else min(steps, config.trainer.rs.max_steps)


def num_optimizer_steps(config: TrainRSConfig, num_prompts: int) -> int:
    """Optimizer steps of the whole run if every prompt keeps as many rollouts as it may."""
    rs = config.model.rs
    draws = draws_per_epoch(config, num_prompts)
    short = num_prompts - (draws - 1) * rs.num_rollout_samples
    optimizer_steps = 0
    for step in range(num_steps(config, num_prompts)):
        is_short = step // rs.pool.improve_steps % draws == draws - 1
        optimizer_steps += _optimizer_steps(config, short if is_short else rs.num_rollout_samples)
    return optimizer_steps


def _optimizer_steps(config: TrainRSConfig, num_prompts: int) -> int:
    """Most optimizer steps of a step on so many prompts."""
    rs = config.model.rs
    kept = rs.most_kept(num_prompts)
    return rs.pool.passes * -(-kept // config.model.global_batch_size)


def plan(config: TrainRSConfig, num_prompts: int | None = None, num_val_prompts: int | None = None) -> str:
    """The run as a table of two columns.

    Args:
        config: a checked config.
        num_prompts: prompts of the training files; None if they have not been read.
        num_val_prompts: prompts of the validation files; None if they have not been read.

    Returns:
        Lines without a trailing line break.
    """
    model, rs = config.model, config.model.rs
    tp, pp, dp = (
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        config.data_parallel_size,
    )
    prompts = min(rs.num_rollout_samples, num_prompts or rs.num_rollout_samples)
    each = rs.num_rollouts_per_prompt
    kept = rs.most_kept(prompts)
    optimizer_steps = _optimizer_steps(config, prompts)
    micro_batches = model.global_batch_size // (model.micro_batch_size * dp)
    wave = rs.rollout_micro_batch_size or -(-prompts // dp)
    rows = [
        ("layout", f"{config.world_size} ranks = {dp} data x {tp} tensor x {pp} pipeline"),
        ("prompts a step", f"{prompts:,}, decoded {wave:,} at a time on each data-parallel rank"),
        ("rollouts a step", _rollouts(config, prompts, each)),
        ("kept a step", f"at most {kept:,} ({_recipe(config)})"),
        ("optimizer steps a step", f"at most {optimizer_steps:,}, of {model.global_batch_size:,} rows"),
        ("micro-batches", f"{micro_batches:,} a rank and optimizer step, of {model.micro_batch_size:,} rows"),
        ("steps in the run", _run_length(config, num_prompts)),
        ("validation", _validation(config, num_val_prompts)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _rollouts(config: TrainRSConfig, prompts: int, each: int) -> str:
    rs = config.model.rs
    if rs.offline:
        return f"none; scored ones of {prompts:,} prompts are read"
    text = f"{prompts * each:,} ({each} a prompt)"
    if rs.until is not None:
        text += f" at most, until {rs.until.accepted} of a prompt score {rs.until.at_least:g} or more"
    if rs.pool.improve_steps > 1:
        text += f"; {rs.pool.improve_steps} steps train on them"
    return text


def _recipe(config: TrainRSConfig) -> str:
    rs = config.model.rs
    if rs.selection:
        return in_words(rs.selection, rs.top_n_rollouts)
    bar = "" if rs.min_reward is None else f", scored {rs.min_reward:g} or more"
    return f"{rs.top_n_rollouts} a prompt{bar}"


def _run_length(config: TrainRSConfig, num_prompts: int | None) -> str:
    loop = config.trainer.rs
    epochs = "1 epoch" if loop.max_epochs == 1 else f"{loop.max_epochs:,} epochs"
    if num_prompts is None:
        limit = "" if loop.max_steps == -1 else f", at most {loop.max_steps:,}"
        return f"{epochs} of the prompts{limit}"
    limit = "" if loop.max_steps == -1 else f"; at most trainer.rs.max_steps = {loop.max_steps:,}"
    each = f"{steps_per_epoch(config, num_prompts):,} steps for {num_prompts:,} prompts"
    return f"{num_steps(config, num_prompts):,} ({epochs}, {each}{limit})"


def _validation(config: TrainRSConfig, num_prompts: int | None) -> str:
    rs, interval = config.model.rs, config.trainer.rs.val_check_interval
    if not config.model.data.data_prefix.validation:
        return "none (model.data.data_prefix.validation is empty)"
    if interval is None:
        return "none (trainer.rs.val_check_interval is null)"
    limits = [n for n in (rs.num_val_samples, num_prompts) if n is not None]
    each = rs.num_val_rollouts_per_prompt
    what = f"all prompts, {each} a prompt"
    if limits:
        what = f"{min(limits):,} prompts, {min(limits) * each:,} rollouts"
    return f"{what}; before the first step, every {interval:,} and after the last"
