"""A whole supervised training, from a checked config to the trained policy.

What `examples/train_sft.py` does. What can be wrong comes first, what is slow to import last. Left out on
purpose: reading the config, starting ranks, and making loggers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rs_aligner.commands import attempt, build
from rs_aligner.config import JudgeConfig, RemoteRMConfig, TrainSFTConfig, num_epoch_steps

if TYPE_CHECKING:
    from rs_aligner.record.run import Run
    from rs_aligner.record.sinks import Logger
    from rs_aligner.reward.client import RemoteGPTRMClient


def fit(
    config: TrainSFTConfig,
    *,
    is_first: bool = True,
    loggers: Callable[[], Sequence[Logger]] = tuple,
    given: Mapping[str, Any] | None = None,
) -> Run:
    """Take the folder, read the data, load the judge and the policy and train it, on every rank.

    Args:
        config: a checked config.
        is_first: whether this rank writes the run's folder and shows the plan.
        loggers: makes further sinks of the figures; called on the first rank when all else is there.
        given: the config as it was given, to be kept in the run's folder.

    Returns:
        The run's folder, closed.
    """
    from rs_aligner.record.run import Run

    build.check_machine(config, is_first)
    with Run(config.exp_manager, is_first=is_first, command="train_sft") as run:
        _fit(config, run, loggers, given)
    return run


def _fit(
    config: TrainSFTConfig,
    run: Run,
    loggers: Callable[[], Sequence[Logger]],
    given: Mapping[str, Any] | None,
) -> None:
    tokenizer, positions = build.read_tokenizer(config)

    from rs_aligner.commands.ahead import plan_of_epochs
    from rs_aligner.commands.machine import fit_of_rows
    from rs_aligner.commands.run_data import read_sft_data
    from rs_aligner.trainers.sft import SFTTrainer

    with contextlib.ExitStack() as stack:
        judge = None if config.judge is None else stack.enter_context(_in_process(config.judge))
        data = read_sft_data(config, tokenizer, positions)
        number = num_epoch_steps(config, len(data.rows))
        if run.is_first:
            fit = fit_of_rows(config, data.rows)
            print(plan_of_epochs(config, data, fit), flush=True)
            fit.check()
            planned = {"steps": number, "optimizer_steps": number}
            run.prepare(attempt.attempt(config, attempt.of_sft(data, judge), planned, given))
        policy = stack.enter_context(build.policy_of(config, tokenizer, number))
        build.open_loggers(config, run, loggers)
        mine = judge if policy.runtime.is_source else None
        rows, validation, shares = data
        SFTTrainer(config, policy, mine, rows=rows, validation=validation, run=run, shares=shares).fit()


def _in_process(judge: JudgeConfig) -> RemoteGPTRMClient:
    """The judge of the held-out answers, with the same checks as one behind a server."""
    from rs_aligner.reward.client import RemoteGPTRMClient
    from rs_aligner.reward.judges import load_judge

    return RemoteGPTRMClient(RemoteRMConfig(), load_judge(judge))
