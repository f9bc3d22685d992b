"""Rollouts from servers: which are asked for when, and how the ranks of a replica keep in step meanwhile.

The rank that speaks for a replica asks; its others wait with it, a tick at a time, so that a stop is heard by
all and none waits longer for the others than a collective may take. Up to so many prompts are under way as a
wave has, and the next one leaves when one of them ends: servers decode whatever is there together. Each
rollout is handed on as it ends, whatever becomes of its request (`order.py`). Who is asked, and again, is
`remote.asking`. Left out on purpose: what a rollout has that did not end before a stop.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from rs_aligner import stopping
from rs_aligner.config.sampling import TrainedGenerationConfig
from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.decoder import Offer, Wave
from rs_aligner.generation.rows import Ended
from rs_aligner.generation.vllm.completing import SECTION, Completing
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.controls import Asked, Run, runs_of
from rs_aligner.generation.vllm.handover import Handover
from rs_aligner.generation.vllm.order import Order, Result, Told, Unsampled
from rs_aligner.remote.asking import Asker, Asking
from rs_aligner.remote.endpoint import Endpoint, Role
from rs_aligner.remote.errors import TransportError
from rs_aligner.sample_request import SamplingFailed

if TYPE_CHECKING:  # slow, and a plan looks at engines only
    from rs_aligner.model.runtime import Runtime

_logger = logging.getLogger("rs_aligner")

Found = TypeVar("Found")

SERVER = Role("vLLM server", "samples")
TICK = 0.5  # seconds between two looks of a replica's ranks at each other


class VllmDecoder:
    """Asks vLLM's servers for rollouts. To be closed at the end.

    Args:
        offer: the policy, whose weights the servers get by `Offer.exports`.
        endpoints: the servers.
        how: they are asked.
    """

    rows_stand_alone = True  # what else is sampled with a row may change its bits, whichever rows that is
    is_served = True

    def __init__(self, offer: Offer, endpoints: Sequence[Endpoint[VllmConnection]], how: Asking) -> None:
        self._offer, self._endpoints, self._how = offer, endpoints, how
        self._asker: Asker[Order, Result, VllmConnection] | None = None
        servers = offer.config.servers
        everything = AllowedTokens(offer.arch.vocab_size, (), 0, offer.allowed)
        self._handover = Handover(offer, servers.request_timeout)
        self._completing = Completing(everything, servers.request_timeout, self._handover)
        self._version: int | None = None  # that the servers have

    @property
    def description(self) -> str:
        """What decodes, and where."""
        return f"vLLM at {', '.join(one.url for one in self._endpoints)}"

    def open(self) -> Asker[Order, Result, VllmConnection]:
        """The servers, ready to be asked: waits until one is.

        Raises:
            SamplingFailed: none is in time.
            ConnectionError: the token is wrong, or a certificate is not good.
            ValueError: a server has another model.
        """
        if self._asker is None:
            asker = Asker(self._completing, self._endpoints, self._how)
            try:
                asker.open(self._offer.config.servers.startup_timeout)
            except TransportError as error:
                raise SamplingFailed(self._unreachable(error)) from None
            self._asker = asker
        return self._asker

    def close(self, *, is_over: bool = False) -> None:
        """As `Decoder.close`; the weights stay for a run that goes on."""
        self._stop()
        if is_over:
            self._handover.remove()

    def _stop(self) -> None:
        """Cut requests short, and ask nobody any more, until something is decoded again."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None

    def prepare(self, version: int, *, now: bool = False) -> int:
        """As `Decoder.prepare`: the servers get the weights, where theirs are too old.

        Raises:
            SamplingFailed: they cannot be written, or no server took them; every rank raises it.
            ValueError: none can take them, at the first time; the same.
            Stopped: a rank was asked to stop meanwhile; the same.
        """
        if self._offer.exports is None:
            if self._version is None:
                self._handover.expect()
                self._let_in(is_first=True)
                self._version = version
            return version
        config = self._offer.config
        most = 0 if now or not isinstance(config, TrainedGenerationConfig) else config.sync_interval - 1
        if self._version is not None and version - self._version <= most:
            return self._version
        began, is_first, self._version = time.monotonic(), self._version is None, None
        runtime = self._offer.runtime
        with self._handover.shut():
            if is_first:
                self._handover.begin(runtime.everyone(self._completing.lora_rank)[0])
            try:
                found = self._handover.write(version, most if is_first else None)
            except OSError as error:  # of every rank
                raise SamplingFailed(f"the weights cannot be written for the servers: {error}") from error
        self._let_in(is_first=is_first)
        if runtime.rank == 0:
            seconds = time.monotonic() - began
            _logger.info("the servers have the weights of version %d (%.1f s)", found, seconds)
        self._version = found
        return found

    def _let_in(self, *, is_first: bool) -> None:
        """Let all servers through the door, in step; raises as `prepare` does."""
        runtime = self._offer.runtime
        for turn in (runtime.rank == 0, runtime.is_source and runtime.rank != 0):  # the second find it done
            problem = in_step(runtime, self._renew if turn else None)
            if wrong := next(filter(None, runtime.everyone(problem)), None):
                raise wrong if is_first and isinstance(wrong, ValueError) else SamplingFailed(str(wrong))

    def _renew(self) -> Exception | None:
        """Let this rank's servers through the door; returns why there is none then."""
        try:
            if self._asker is None:
                self.open()
            else:
                self._asker.renew("it has to take new weights", self._how.give_up_after or 0.0)
        except TransportError as error:
            return SamplingFailed(f"no {SERVER.name} takes the weights: {error}")
        except (ConnectionError, ValueError) as error:
            return error
        except stopping.Stopped:
            pass  # all ranks hear of it
        return None

    def decode(self, wave: Wave) -> Iterator[Ended]:
        """As `Decoder.decode`; the rank that speaks for the replica has the rollouts, the others none.

        Raises:
            SamplingFailed: on the rank that asks.
        """
        if self._offer.runtime.is_source:
            yield from self._lead(wave)
        else:
            while not self._tick(wave, is_over=False):
                pass

    def _lead(self, wave: Wave) -> Iterator[Ended]:
        is_over = False
        try:
            asking = _Asking(self.open(), self._runs(wave), wave.at_once or len(wave.rows))
            while not is_over:
                ended = asking.wait(TICK)
                is_over = self._tick(wave, is_over=asking.is_over or asking.failed is not None)
                yield from ended
                if asking.failed is not None:
                    raise SamplingFailed(f"rollouts were asked for in vain: {asking.failed.reason}")
            if not asking.is_over:
                self._stop()  # a stop: servers end what nobody waits for
        finally:
            if not is_over:  # the others wait for this rank, whatever happens to it
                self._tick(wave, is_over=True)

    def _tick(self, wave: Wave, *, is_over: bool) -> bool:
        """Whether the wave is over, by the rank that asks or since all are to stop; in step on all ranks."""
        stops = wave.stops()
        return self._offer.runtime.any_of_replica(is_over or stops)

    def _runs(self, wave: Wave) -> list[Run]:
        """The requests.

        Raises:
            ValueError: a rollout may have more tokens than the servers take.
        """
        vocab_size, controls = self._offer.arch.vocab_size, wave.controls
        allowed = AllowedTokens(
            vocab_size, wave.end_strings.eos_ids, controls.min_length, self._offer.allowed
        )
        most = self._completing.max_length
        for row in wave.rows:
            if most is not None and len(row.prompt.token_ids) + row.limit > most:
                raise ValueError(
                    f"prompt {row.prompt.id!r} has {len(row.prompt.token_ids)} tokens, and its response may "
                    f"have {row.limit}, more than the {most} that vLLM takes together: start it with a "
                    "larger --max-model-len, or lower length_params.max_length"
                )
        return runs_of(wave.rows, Asked(controls, wave.end_strings, allowed, self._completing.barred()))

    def _unreachable(self, error: TransportError) -> str:
        seconds = self._offer.config.servers.startup_timeout
        return (
            f"no vLLM server is ready after {seconds:g} s: {error}; start one there (rs-aligner "
            f"serve-rollouts), correct generation.endpoints, or raise {SECTION}.startup_timeout if it is "
            "still starting"
        )


def in_step(runtime: Runtime, work: Callable[[], Found] | None) -> Found | None:
    """Do what waits for others on some ranks, while all of them look at each other; a collective.

    Args:
        runtime: of this rank.
        work: what this rank does; None for nothing. It ends where `stopping` says so.

    Returns:
        What `work` returned.

    Raises:
        Stopped: a rank was asked to stop; every rank raises it.
    """
    with ThreadPoolExecutor(1) as worker:
        future = None if work is None else worker.submit(work)
        is_busy = stops = True
        while is_busy:
            if future is not None:
                wait([future], TICK)
            stops = runtime.any_rank(stopping.poll())
            if stops and not stopping.is_asked():
                stopping.ask("another rank was asked")
            is_busy = runtime.any_rank(future is not None and not future.done())
    if stops:
        raise stopping.Stopped(stopping.reason())
    return None if future is None else future.result()


class _Asking:
    """The requests of a wave: some under way, others waiting for their turn.

    Args:
        asker: whom they are handed to.
        runs: the requests.
        at_once: how many are under way at most.

    Attributes:
        failed: why one of them was given up; None if none was.
    """

    def __init__(
        self, asker: Asker[Order, Result, VllmConnection], runs: Sequence[Run], at_once: int
    ) -> None:
        self._asker, self._waiting, self._at_once = asker, deque(runs), at_once
        self._under_way = 0
        self._told: SimpleQueue[Told] = SimpleQueue()
        self.failed: Unsampled | None = None
        self._fill()

    @property
    def is_over(self) -> bool:
        """Whether all rollouts are there, and fetched."""
        return not self._under_way

    def wait(self, seconds: float) -> list[Ended]:
        """The rollouts that end in so many seconds; without waiting for others once there is one."""
        ended: list[Ended] = []
        try:
            self._take(self._told.get(timeout=seconds), ended)
            while True:
                self._take(self._told.get_nowait(), ended)
        except Empty:
            pass
        self._fill()
        return ended

    def _take(self, told: Told, ended: list[Ended]) -> None:
        if isinstance(told, list):
            ended += told
        elif isinstance(told, Run):
            self._waiting.appendleft(told)
        else:
            self._under_way -= 1
            self.failed = self.failed or told

    def _fill(self) -> None:
        while self._waiting and self._under_way < self._at_once:
            run = self._waiting.popleft()
            self._under_way += 1
            order = Order(run, self._told)
            future = self._asker.submit(order, len(run.rows[0].prompt.token_ids))
            future.add_done_callback(lambda future: self._told.put(future.result()))
