"""What the plans of all trainings have in common: the table, the layout, the batches, the learning rate.

Left out on purpose: what a step is, and how many there are; each plan has its own (`plan.py`,
`epoch_plan.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rs_aligner.batching import next_batch_size
from rs_aligner.config.optim import OptimConfig
from rs_aligner.config.training import TrainConfig
from rs_aligner.schedule import NEAR, RatePath, rate_path

Line = tuple[str, str]
"""A row of a plan: its name and its text."""

_NULL = "null fits the run's length"


def table(lines: Iterable[Line]) -> str:
    """The lines as two columns, without a trailing line break."""
    rows = list(lines)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def layout(config: TrainConfig) -> Line:
    """How the ranks share the work."""
    model, dp = config.model, config.data_parallel_size
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    shares = model.expert_model_parallel_size
    experts = f"; {shares} data-parallel ranks share a layer's experts" if shares > 1 else ""
    return "layout", f"{config.world_size} ranks = {dp} data x {tp} tensor x {pp} pipeline{experts}"


def micro_batches(config: TrainConfig) -> Line:
    """How a full batch passes through the model."""
    model = config.model
    if model.max_tokens_per_microbatch is not None:
        return "micro-batches", f"of up to {model.max_tokens_per_microbatch:,} tokens, whole rows in a line"
    number = model.global_batch_size // (model.micro_batch_size * config.data_parallel_size)
    return "micro-batches", f"{number:,} a rank and optimizer step, of {model.micro_batch_size:,} rows"


def batch_sizes(rows: int, most: int) -> str:
    """In words, the sizes of the batches that so many rows are cut into."""
    if not rows:
        return "no"
    number = -(-rows // most)
    return " or ".join(f"{size:,}" for size in sorted({rows // number, next_batch_size(rows, most)}))


def epochs(config: TrainConfig) -> str:
    """In words, how often the data is passed over."""
    number = config.loop.max_epochs
    return "1 epoch" if number == 1 else f"{number:,} epochs"


def learning_rate(optim: OptimConfig, num_steps: int, each: str = "") -> Line:
    """What the rate does over so many optimizer steps, at least one; `each`: of what, if not of the run."""
    path = rate_path(optim.sched, optim.lr, num_steps)
    rates = (("first", path.first), ("highest", path.highest), ("mean", path.mean), ("last", path.last))
    shown = ", ".join(f"{name} {rate:.3g}" for name, rate in rates)
    return "learning rate", f"{shown} ({optim.sched.name} over {num_steps:,} optimizer steps{each})"


def rate_warnings(optim: OptimConfig, num_steps: int) -> Iterator[Line]:
    """A line for each way in which so many optimizer steps hardly train, with the key that makes it so."""
    path = rate_path(optim.sched, optim.lr, num_steps)

    def rarely(path: RatePath) -> bool:
        return 10 * path.near_lr < path.steps

    def low(path: RatePath) -> bool:
        return 5 * path.mean < optim.lr

    if rarely(path):
        yield (
            "warning",
            f"{_cause(optim, num_steps, rarely)}: the rate is near model.optim.lr = {optim.lr:g} ({NEAR:g} "
            f"of it or more) in only {path.near_lr:,} of {path.steps:,} optimizer steps; {_NULL}",
        )
    if low(path):
        yield (
            "warning",
            f"{_cause(optim, num_steps, low)}: the mean rate is {path.mean / optim.lr:.1%} of "
            f"model.optim.lr = {optim.lr:g}; {_NULL}",
        )


def few_rows(key: str, rows: int, most: int, instead: str) -> Line:
    """A warning of a step on few rows: what causes it, and what to do."""
    count = "1 row" if rows == 1 else f"{rows:,} rows"
    size = f"model.global_batch_size = {most:,}"
    tenth = "a tenth of it" if key == size else f"a tenth of {size}"
    return "warning", f"{key}: an optimizer step on {count} at most, fewer than {tenth}; {instead}"


def _cause(optim: OptimConfig, num_steps: int, is_bad: Callable[[RatePath], bool]) -> str:
    """The set key of the schedule whose default would do; all that are set where no single one would."""
    keys = {name: getattr(optim.sched, name) for name in ("constant_steps", "warmup_steps", "min_lr")}
    chosen = {name: value for name, value in keys.items() if value is not None}
    for name, value in chosen.items():
        if not is_bad(rate_path(optim.sched.model_copy(update={name: None}), optim.lr, num_steps)):
            return f"model.optim.sched.{name} = {value:,}"
    return "model.optim.sched = {" + ", ".join(f"{name}: {value}" for name, value in chosen.items()) + "}"


def in_gib(size: int) -> str:
    """Bytes as GiB, or as MiB where they are few."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
