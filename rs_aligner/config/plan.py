"""What a run is going to do, in numbers, before it does it.

Pure arithmetic on the config, the number of prompts and, where scored rollouts are read, their number.
Left out on purpose: memory, which depends on the policy's sizes (`model/memory.py`), and guesses of how much
passes a bar; where it says "at most", everything passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from rs_aligner.batching import is_few
from rs_aligner.config import plan_parts as parts
from rs_aligner.config.chain import in_words
from rs_aligner.config.objective import num_anchors
from rs_aligner.config.train_rs import TrainRSConfig


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


def num_optimizer_steps(config: TrainRSConfig, num_prompts: int, largest: int | None = None) -> int:
    """Optimizer steps of the whole run if every step keeps as many rollouts as it may.

    Args:
        config: a checked config.
        num_prompts: prompts to train on.
        largest: most rollouts of a prompt, where they are read instead of sampled; None: as configured.
    """
    return sum(_of_each_step(config, num_prompts, largest))


def schedule_steps(config: TrainRSConfig, num_prompts: int, largest: int | None = None) -> int:
    """Optimizer steps over which the learning rate runs its course: the run's, or those of a longest cycle.

    With `pool.restart` the optimizer and its schedule begin again at each cycle. Arguments as for
    `num_optimizer_steps`.
    """
    each, pool = _of_each_step(config, num_prompts, largest), config.model.rs.pool
    if not pool.restart:
        return sum(each)
    cycles = range(0, len(each), pool.improve_steps)
    return max(sum(each[first : first + pool.improve_steps]) for first in cycles)


def _of_each_step(config: TrainRSConfig, num_prompts: int, largest: int | None) -> list[int]:
    """Most optimizer steps of each step of the run."""
    passes, most = config.model.rs.pool.passes, config.model.global_batch_size
    return [passes * -(-rows // most) for rows in _rows_of_each_step(config, num_prompts, largest)]


def _rows_of_each_step(config: TrainRSConfig, num_prompts: int, largest: int | None) -> list[int]:
    """Most rows that each step of the run trains on in a pass."""
    rs = config.model.rs
    draws = draws_per_epoch(config, num_prompts)
    last = num_prompts - (draws - 1) * rs.num_rollout_samples  # the last draw of an epoch has what is left

    @cache
    def rows(drawn: tuple[int, ...]) -> int:
        return _rows(config, rs.most_kept(drawn, num_prompts=num_prompts, largest=largest))

    def of_draw(draw: int) -> int:
        recent = range(draw, max(-1, draw - 1 - rs.pool.max_staleness), -1)
        return rows(tuple(last if one % draws == draws - 1 else rs.num_rollout_samples for one in recent))

    return [of_draw(step // rs.pool.improve_steps) for step in range(num_steps(config, num_prompts))]


def _rows(config: TrainRSConfig, kept: int) -> int:
    """Rows of a pass over so many kept rollouts, with the supervised ones that are mixed in."""
    return kept + num_anchors(kept, config.model.rs.objective.anchor.share)


def _optimizer_steps(config: TrainRSConfig, kept: int) -> int:
    """Optimizer steps of a step that keeps so many rollouts: each pass cuts its rows into batches anew."""
    return config.model.rs.pool.passes * -(-_rows(config, kept) // config.model.global_batch_size)


def plan(
    config: TrainRSConfig,
    num_prompts: int | None = None,
    num_val_prompts: int | None = None,
    largest: int | None = None,
    further: Iterable[parts.Line] = (),
) -> str:
    """The run as a table of two columns.

    Args:
        config: a checked config.
        num_prompts: prompts of the training files; None if they have not been read.
        num_val_prompts: prompts of the validation files; None if they have not been read.
        largest: most rollouts of a prompt, where they are read instead of sampled; None if not known.
        further: lines on the data's shares and the memory of a rank, where its model is known.

    Returns:
        Lines without a trailing line break.
    """
    model, rs = config.model, config.model.rs
    prompts = min(rs.num_rollout_samples, num_prompts or rs.num_rollout_samples)
    each = rs.num_rollouts_per_prompt
    drawn = [prompts] * (1 + rs.pool.max_staleness)
    kept = rs.most_kept(drawn, num_prompts=num_prompts, largest=largest)
    batches = f"{parts.batch_sizes(_rows(config, kept), model.global_batch_size)} rows"
    if rs.pool.passes > 1:
        batches += f", in {rs.pool.passes:,} passes"
    wave = rs.rollout_micro_batch_size or -(-prompts // config.data_parallel_size)
    return parts.table(
        [
            parts.layout(config),
            ("prompts a step", f"{prompts:,}, decoded {wave:,} at a time on each data-parallel rank"),
            ("rollouts a step", _rollouts(config, prompts, each)),
            ("kept a step", f"at most {kept:,} ({_recipe(config)})"),
            ("optimizer steps a step", f"at most {_optimizer_steps(config, kept):,}, of {batches}"),
            parts.micro_batches(config),
            ("steps in the run", _run_length(config, num_prompts)),
            *_rates(config, num_prompts, largest),
            ("validation", _validation(config, num_val_prompts)),
            *_special(config, kept, num_prompts, largest),
            *further,
            *_warnings(config, num_prompts, largest),
        ]
    )


def _rates(config: TrainRSConfig, num_prompts: int | None, largest: int | None) -> Iterator[parts.Line]:
    """The optimizer steps of the run and what the learning rate does meanwhile, if the prompts are known."""
    if num_prompts is None:
        return
    yield "optimizer steps in all", f"at most {num_optimizer_steps(config, num_prompts, largest):,}"
    planned = schedule_steps(config, num_prompts, largest)
    if planned:
        each = " of a cycle" if config.model.rs.pool.restart else ""
        yield parts.learning_rate(config.model.optim, planned, each)


def _warnings(config: TrainRSConfig, num_prompts: int | None, largest: int | None) -> Iterator[parts.Line]:
    """A line for each choice under which a run of so many prompts hardly trains, or trains on chance."""
    if num_prompts is None:
        return
    rs, most = config.model.rs, config.model.global_batch_size
    restarts = rs.pool.restart and num_prompts > rs.num_rollout_samples
    if restarts:
        yield (
            "warning",
            "a restart forgets what was learnt of other prompts: "
            f"model.rs.num_rollout_samples = {rs.num_rollout_samples:,} should be all {num_prompts:,}",
        )
    rows = [number for number in _rows_of_each_step(config, num_prompts, largest) if number]
    if not rows:
        return
    if is_few(max(rows), most):
        yield parts.few_rows(
            f"model.global_batch_size = {most:,}", max(rows), most, "lower it, or keep more in a step"
        )
    elif is_few(min(rows), most):
        draws = draws_per_epoch(config, num_prompts)
        even = f"{-(-num_prompts // draws):,} would make the draws of an epoch equal"
        key = f"model.rs.num_rollout_samples = {rs.num_rollout_samples:,}"
        yield parts.few_rows(key, min(rows), most, even)
    yield from parts.rate_warnings(config.model.optim, schedule_steps(config, num_prompts, largest))


def _rollouts(config: TrainRSConfig, prompts: int, each: int) -> str:
    rs = config.model.rs
    if rs.offline:
        return f"none; scored ones of {prompts:,} prompts are read"
    text = f"{prompts * each:,} ({each} a prompt)"
    if rs.until is not None:
        text += f" at most, until {rs.until.accepted} of a prompt score {rs.until.at_least:g} or more"
    if rs.pool.improve_steps > 1:
        text += f"; {rs.pool.improve_steps} steps train on them"
    if rs.pool.max_staleness:
        later = "1 step" if rs.pool.max_staleness == 1 else f"{rs.pool.max_staleness} steps"
        text += f"; the kept stay candidates for {later}"
    return text


def _special(
    config: TrainRSConfig, kept: int, num_prompts: int | None, largest: int | None
) -> Iterator[parts.Line]:
    """A row for each choice that not every run makes."""
    objective, pool = config.model.rs.objective, config.model.rs.pool
    anchor = objective.anchor
    if anchor.share:
        number = num_anchors(kept, anchor.share)
        weight = "" if anchor.weight == 1 else f", weight {anchor.weight:g}"
        yield "supervised rows", f"at most {number:,} a pass, {anchor.share:g} of each batch{weight}"
    if objective.kl:
        where = "in the CPU's memory" if objective.offload_reference else "on the device"
        how = "" if objective.kl_estimator == "k3" else f", by {objective.kl_estimator}"
        if objective.kl_estimator in ("k1", "kl"):
            how += " (which has no gradient towards it: k1+ has)"
        yield "KL term", f"weight {objective.kl:g}{how}, to the starting policy, whose weights wait {where}"
    if pool.restart:
        steps = _optimizer_steps(config, kept) * pool.improve_steps
        if num_prompts is not None:
            steps = schedule_steps(config, num_prompts, largest)
        often = "each step" if pool.improve_steps == 1 else f"every {pool.improve_steps} steps"
        yield (
            "restart",
            f"to the starting weights {often}; the learning rate begins again, for {steps:,} optimizer steps",
        )
    if config.trainer.rs.patience is not None:
        number, figure = config.trainer.rs.patience, config.exp_manager.checkpoint_callback_params.figure
        checks = "1 validation" if number == 1 else f"{number} validations"
        yield "patience", f"stops after {checks} without a better {figure}; final/ is the best policy"
    if config.watched_rm is not None:
        where = "in this process"
        if not config.watched_rm.in_process:
            where = "at " + ", ".join(server.url for server in config.watched_rm.servers)
        yield "watched judge", f"{where}; it scores every rollout and decides nothing"


def _recipe(config: TrainRSConfig) -> str:
    rs = config.model.rs
    if rs.selection:
        return in_words(rs.selection, rs.top_n_rollouts)
    bar = "" if rs.min_reward is None else f", scored {rs.min_reward:g} or more"
    return f"{rs.top_n_rollouts} a prompt{bar}"


def _run_length(config: TrainRSConfig, num_prompts: int | None) -> str:
    loop = config.trainer.rs
    epochs = parts.epochs(config)
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
