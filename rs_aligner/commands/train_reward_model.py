"""A whole training of a reward model, from a checked config to the trained model.

What `examples/train_reward_model.py` does. What can be wrong comes first, what is slow to import last. Left
out on purpose: reading the config, starting ranks, and making loggers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rs_aligner.commands import attempt, build
from rs_aligner.config import TrainRewardModelConfig, num_epoch_steps

if TYPE_CHECKING:
    from rs_aligner.record.run import Run
    from rs_aligner.record.sinks import Logger


def fit(
    config: TrainRewardModelConfig,
    *,
    is_first: bool = True,
    loggers: Callable[[], Sequence[Logger]] = tuple,
    given: Mapping[str, Any] | None = None,
) -> Run:
    """Take the folder, read the pairs, load the model and train it, on every rank.

    Args:
        config: a checked config.
        is_first: whether this rank writes the run's folder and shows the plan.
        loggers: makes further sinks of the figures; called on the first rank when all else is there.
        given: the config as it was given, to be kept in the run's folder.

    Returns:
        The run's folder, closed; `final/` in it is the reward model.
    """
    from rs_aligner.record.run import Run

    build.check_machine(config, is_first)
    with Run(config.exp_manager, is_first=is_first, command="train_reward_model") as run:
        _fit(config, run, loggers, given)
    return run


def _fit(
    config: TrainRewardModelConfig,
    run: Run,
    loggers: Callable[[], Sequence[Logger]],
    given: Mapping[str, Any] | None,
) -> None:
    tokenizer, positions = build.read_tokenizer(config)

    from rs_aligner.commands.ahead import plan_of_epochs
    from rs_aligner.commands.machine import fit_of_rows
    from rs_aligner.commands.run_data import read_pair_data
    from rs_aligner.trainers.preference import PreferenceTrainer

    data = read_pair_data(config, tokenizer, positions)
    number = num_epoch_steps(config, len(data.rows))
    if run.is_first:
        fit = fit_of_rows(config, data.rows)
        print(plan_of_epochs(config, data, fit), flush=True)
        fit.check()
        planned = {"steps": number, "optimizer_steps": number}
        run.prepare(attempt.attempt(config, attempt.of_preferences(data), planned, given))
    with build.reward_model_of(config, tokenizer, number) as model:
        build.open_loggers(config, run, loggers)
        pairs, validation, shares = data
        PreferenceTrainer(config, model, pairs=pairs, validation=validation, run=run, shares=shares).fit()
