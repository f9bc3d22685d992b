"""A whole run of rejection sampling, from a checked config to the trained policy.

What `examples/train_rs.py` and `rs_aligner.train` do alike. What can be wrong comes first, what is slow to
import last. Left out on purpose: reading the config, starting ranks, and making loggers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rs_aligner import stopping
from rs_aligner.commands import attempt, build
from rs_aligner.config import TrainRSConfig, schedule_steps

if TYPE_CHECKING:
    from rs_aligner.record.run import Run
    from rs_aligner.record.sinks import Logger
    from rs_aligner.reward.client import RemoteGPTRMClient
    from rs_aligner.reward.judges import ServedJudge
    from rs_aligner.trainers.held_out import MetricsOf


def fit(
    config: TrainRSConfig,
    judge: ServedJudge | None = None,
    *,
    is_first: bool = True,
    loggers: Callable[[], Sequence[Logger]] = tuple,
    given: Mapping[str, Any] | None = None,
    metrics_of: MetricsOf | None = None,
) -> Run:
    """Take the folder, read the data, reach the judges, load the policy and train it, on every rank.

    Args:
        config: a checked config.
        judge: scores in this process, instead of what `remote_rm` names.
        is_first: whether this rank writes the run's folder and shows the plan.
        loggers: makes further sinks of the figures; called on the first rank when all else is there.
        given: the config as it was given, to be kept in the run's folder.
        metrics_of: further figures of the answers to held-out prompts, where there is one rank.

    Returns:
        The run's folder, closed.
    """
    from rs_aligner.record.run import Run

    build.check_machine(config, is_first)
    with Run(config.exp_manager, is_first=is_first, command="train_rs") as run:
        _fit(config, judge, run, loggers, given, metrics_of)
    return run


def _fit(
    config: TrainRSConfig,
    judge: ServedJudge | None,
    run: Run,
    loggers: Callable[[], Sequence[Logger]],
    given: Mapping[str, Any] | None,
    metrics_of: MetricsOf | None,
) -> None:
    from rs_aligner.commands.ahead import plan_of_rs
    from rs_aligner.commands.machine import fit_of_rs
    from rs_aligner.commands.run_data import read_rs_data
    from rs_aligner.selection import chain_of

    # Users' code is imported here, so that an error in it comes in seconds.
    chain = chain_of(config.model.rs)
    tokenizer, positions = build.read_tokenizer(config)
    with _judges(config, judge) as (client, watched):
        data = read_rs_data(config, tokenizer, positions)._replace(metrics_of=metrics_of)
        number = len(data.scored) or len(data.prompts)
        largest = max((len(group.rollouts) for group in data.scored), default=None)
        budget = None
        if run.is_first:
            fit = fit_of_rs(config, data, positions)
            text, planned = plan_of_rs(config, data, fit)
            print(text, flush=True)
            fit.check()
            _wait_for(config, client, watched)
            found = attempt.of_rs(config, data, client, watched)
            mine = attempt.attempt(config, found, planned, given)
            if (budget := attempt.cache_budget(fit, run.folder)) is not None:
                mine.seen[attempt.CACHE] = str(budget)
            run.prepare(mine)

        from rs_aligner.trainers.round import Judges
        from rs_aligner.trainers.rs import RSTrainer

        steps = schedule_steps(config, number, largest)
        with build.policy_of(config, tokenizer, steps, cache_bytes=budget) as policy:
            build.open_loggers(config, run, loggers)
            judges = Judges(client, watched) if policy.runtime.is_source else Judges()
            RSTrainer(config, policy, judges, data, run, chain=chain).fit()


@contextlib.contextmanager
def _judges(
    config: TrainRSConfig, judge: ServedJudge | None
) -> Iterator[tuple[RemoteGPTRMClient, RemoteGPTRMClient | None]]:
    """The judge and the watched one."""
    from rs_aligner.reward.client import RemoteGPTRMClient

    with contextlib.ExitStack() as stack:
        client = stack.enter_context(RemoteGPTRMClient(config.remote_rm, judge))
        watched = None
        if config.watched_rm is not None:
            watched = stack.enter_context(RemoteGPTRMClient(config.watched_rm))
        yield client, watched


def _wait_for(config: TrainRSConfig, *judges: RemoteGPTRMClient | None) -> None:
    """Wait until the judges are ready, unless nothing is going to be scored."""
    if not config.samples:
        return
    if any(judge is not None and not judge.is_local for judge in judges):
        build.say("waiting for the judge")
    for judge in judges:
        if judge is not None:
            with contextlib.suppress(stopping.Stopped):  # the ranks agree on it once they have joined
                judge.wait_until_ready()
