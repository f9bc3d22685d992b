"""What a training that passes over rows is going to do, in numbers: a supervised one, or of a reward model.

Pure arithmetic on the config and the numbers of rows. Left out on purpose: memory, which depends on the
model's sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rs_aligner.batching import is_few
from rs_aligner.config import plan_parts as parts
from rs_aligner.config.train_sft import TrainSFTConfig
from rs_aligner.config.training import TrainConfig


def num_epoch_steps(config: TrainConfig, num_rows: int) -> int:
    """Steps of the whole run: all epochs, or `max_steps` if that is less."""
    steps = config.loop.max_epochs * -(-num_rows // config.model.global_batch_size)
    return steps if config.loop.max_steps == -1 else min(steps, config.loop.max_steps)


def epoch_plan(
    config: TrainConfig, num_rows: int, num_validation: int, further: Iterable[parts.Line] = ()
) -> str:
    """The run as a table of two columns.

    Args:
        config: a checked config.
        num_rows: rows, or pairs, of the training files; at least one.
        num_validation: held-out prompts or pairs.
        further: lines on the data's shares and the memory of a rank, where its model is known.

    Returns:
        Lines without a trailing line break.
    """
    return parts.table([*_lines(config, num_rows, num_validation), *further])


def _lines(config: TrainConfig, num_rows: int, num_validation: int) -> Iterator[parts.Line]:
    model, steps = config.model, num_epoch_steps(config, num_rows)
    most, optim = model.global_batch_size, model.optim
    what = "rows" if isinstance(config, TrainSFTConfig) else "pairs"
    limit = "" if config.loop.max_steps == -1 else f"; at most max_steps = {config.loop.max_steps:,}"
    yield parts.layout(config)
    yield "data", f"{num_rows:,} {what}, {parts.epochs(config)}"
    yield "optimizer steps", f"at most {steps:,}, of {parts.batch_sizes(num_rows, most)} {what}{limit}"
    yield parts.micro_batches(config)
    yield parts.learning_rate(optim, steps)
    yield "validation", _validation(config, num_validation, what)
    if is_few(num_rows, most):
        yield parts.few_rows(
            f"model.global_batch_size = {most:,}", num_rows, most, f"the data has {num_rows:,} {what}"
        )
    yield from parts.rate_warnings(optim, steps)


def _validation(config: TrainConfig, number: int, what: str) -> str:
    interval = config.loop.val_check_interval
    if isinstance(config, TrainSFTConfig):
        what, number = "prompts", min(number, config.model.sft.num_val_samples or number)
        if config.judge is None:
            return "none (there is no judge)"
    if not number:
        return "none (model.data.data_prefix.validation is empty)"
    if interval is None:
        return "none (val_check_interval is null)"
    return f"{number:,} {what}; before the first step, every {interval:,} and after the last"
