"""The judge as a service of its own, over HTTP: from the config to an exit status.

One Triton model takes both kinds of request of `protocol`: `tokens` and `sequence_lengths` (and `sentences`)
of NeMo-Aligner's contract, or `prompts`, `responses` and `metadata`, each with optional `row_ids`. It answers
`rewards`, float64 `[B, 1]`, NaN where there is none, and as bytes `[B, 1]` why (`errors`), the ids as they
came, the judge's fingerprint, and named components as JSON. `scorer` does that; `serving` runs Triton.

The judge is loaded and tried before anything listens, and outlives a Triton that breaks: the server starts
another one. gRPC is left closed: clients speak HTTP, and an open port is something to guard.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rs_aligner.address import Address
from rs_aligner.remote.listening import any_free_port, free_address, listen_at
from rs_aligner.reward.judges import ServedJudge, load_judge, remarks_of
from rs_aligner.reward.judges.combined import StandardisedJudge
from rs_aligner.reward.protocol import JUDGE_TOKEN
from rs_aligner.reward.server.check import check
from rs_aligner.reward.server.relay import relay
from rs_aligner.reward.server.scorer import Decode, Scorer
from rs_aligner.reward.server.scratch import remove_shared_memory, scratch_folder
from rs_aligner.reward.server.serving import serving, use_our_libpython
from rs_aligner.reward.server.statistics import Statistics, metrics_endpoint, triton_metrics
from rs_aligner.reward.server.watched import BrokenStart, WatchedTriton, end_processes
from rs_aligner.users_code import describe

if TYPE_CHECKING:
    from rs_aligner.config import ServeRewardConfig

# After a signal: when rows that the judge still works on fail, and when the process leaves whatever happens.
CLOSE_SECONDS = 4
LEAVE_SECONDS = 6
REPORT_SECONDS = 60.0
WATCH_SECONDS = 0.5
# A Triton that breaks so often in a row without a single row scored between is not worth another start. (One
# that works is: Triton's Python backend is known to break now and then under load.)
MOST_RESTARTS = 5


def serve(cfg: ServeRewardConfig) -> None:
    """Serve the judge of the config until SIGTERM or SIGINT, then exit with status 0.

    Raises:
        ValueError: a judge, a tokenizer or an address that cannot be used; before Triton is started.
        RuntimeError: Triton did not start, or broke again and again.
        SystemExit: with status 0, after a signal.
    """
    _end_on_signals(None, None)
    # Who sent a bad request is told why; its traceback here would help nobody.
    logging.getLogger("pytriton").setLevel(logging.CRITICAL)
    use_our_libpython()
    address, token = address_of(cfg)
    with contextlib.ExitStack() as stack:
        judge = load(cfg)
        stack.callback(judge.close)
        for line in remarks_of(judge):
            print(f"judge: {line}", flush=True)
        decode = None if cfg.tokenizer is None else load_decoder(cfg.tokenizer)
        statistics = Statistics()
        scorer = Scorer(
            judge,
            cfg.inference.inference_micro_batch_size,
            decode,
            token,
            cfg.inference.max_request_bytes,
            statistics,
        )
        scratch = stack.enter_context(scratch_folder())
        _end_on_signals(judge, scratch)
        _run(cfg, address, scorer, judge.fingerprint, scratch, stack)


def address_of(cfg: ServeRewardConfig) -> tuple[str, str | None]:
    """Where the judge is to be served, with the token that clients need there, if any.

    Raises:
        ValueError: the address is taken, or other machines could reach it without a token.
    """
    settings = cfg.inference
    return listen_at(settings.host, settings.port, settings.token_file, JUDGE_TOKEN)


def examine(cfg: ServeRewardConfig) -> bool:
    """Check the judge of the config and print a report, without a server.

    Returns:
        Whether it passed.

    Raises:
        ValueError: a judge or a folder that cannot be used.
    """
    with contextlib.closing(load(cfg)) as judge:
        return check(cfg, judge, functools.partial(print, flush=True))


def load(cfg: ServeRewardConfig) -> ServedJudge:
    """The judge of the config, its rewards standardised if that is wanted.

    Raises:
        ValueError: as `judges.load_judge`.
    """
    judge, standard = load_judge(cfg.judge), cfg.model.reward_standardization
    if not standard.enable:
        return judge
    assert standard.mean is not None
    assert standard.std is not None
    return StandardisedJudge(judge, standard.mean, standard.std)


def load_decoder(folder: str) -> Decode:
    """How the policy's tokens become text; imported here because most judges need none.

    Raises:
        ValueError: the folder has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"tokenizer: no tokenizer could be loaded from {folder}: {describe(error)}"
        ) from error

    def decode(token_ids: list[int]) -> str:
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))

    return decode


def _run(
    cfg: ServeRewardConfig,
    address: str,
    scorer: Scorer,
    fingerprint: str,
    scratch: Path,
    stack: contextlib.ExitStack,
) -> NoReturn:
    """Serve, and start again what breaks, until a signal raises SystemExit."""
    name, shown_at = cfg.inference.model_name, Address(cfg.inference.host.strip("[]"), cfg.inference.port)
    log_file = Path(cfg.log_dir or scratch) / "triton.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    statistics, triton_port, shown = scorer.statistics, None, ""
    where = address, cfg.inference.port
    if ":" in address:
        where = "127.0.0.1", any_free_port()
        stack.enter_context(relay(address, cfg.inference.port, where))
    if cfg.inference.metrics_port is not None:
        metrics_host = cfg.inference.metrics_host

        def figures() -> str:
            return statistics.text(fingerprint, scorer.counters()) + triton_metrics(triton_port)

        try:
            endpoint = metrics_endpoint(metrics_host, cfg.inference.metrics_port, figures)
            shown = f", metrics at {Address(metrics_host.strip('[]'), stack.enter_context(endpoint))}/metrics"
        except OSError as error:
            raise ValueError(
                f"cannot show metrics at {metrics_host}:{cfg.inference.metrics_port}: "
                f"{error.strerror or error}; set inference.metrics_port to a free port, or to 0 for any"
            ) from None
    fruitless, scored = 0, 0
    while True:
        triton_port = any_free_port() if shown else None
        try:
            with serving(cfg.inference, where, scorer, scratch, log_file, triton_port) as triton:
                print(f"judge {name} ready at {shown_at} ({fingerprint}{shown})", flush=True)
                problem = _watch(triton, statistics)
        except BrokenStart as error:
            free_address(*where)  # one that another has taken since is not worth a further start
            problem = str(error)
        fruitless = fruitless + 1 if statistics.num_rows == scored else 1
        scored = statistics.num_rows
        if fruitless > MOST_RESTARTS:
            raise RuntimeError(f"{problem}, the {fruitless}th time with no row scored between")
        statistics.count_restart()
        print(f"judge: {problem}; starting Triton again", flush=True)


def _watch(triton: WatchedTriton, statistics: Statistics) -> str:
    """Report now and then, until a signal raises SystemExit, or something breaks: what."""
    reported, next_report = 0, time.monotonic() + REPORT_SECONDS
    while (problem := triton.problem()) is None:
        time.sleep(WATCH_SECONDS)
        if time.monotonic() < next_report:
            continue
        next_report += REPORT_SECONDS
        if statistics.num_rows > reported:
            reported = statistics.num_rows
            last = f", the last: {statistics.last_failure}" if statistics.num_failed else ""
            print(f"judge: {reported} rows served, {statistics.num_failed} failed{last}", flush=True)
    return problem


def _end_on_signals(judge: ServedJudge | None, scratch: Path | None) -> None:
    """Let SIGTERM and SIGINT end the process; set explicitly: background jobs of a shell ignore SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, functools.partial(_exit, judge, scratch))


def _exit(judge: ServedJudge | None, scratch: Path | None, *_: object) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the way out is not to be interrupted
    if judge is not None:
        _later(CLOSE_SECONDS, judge.close)
    _later(LEAVE_SECONDS, functools.partial(_leave, scratch))
    raise SystemExit(0)


def _later(seconds: float, call: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def _leave(scratch: Path | None) -> NoReturn:
    """Leave without waiting for a judge that hangs."""
    end_processes()
    remove_shared_memory(os.getpid())
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)
