"""Rollouts from servers: which are asked for when, and how the ranks of a replica keep in step meanwhile.

The rank that speaks for a replica asks; its others wait with it, a tick at a time, so that a stop is heard by
all and none waits longer for the others than a collective may take. Up to so many prompts are under way as a
wave has, and the next one leaves when one of them ends: servers decode whatever is there together. Who is
asked, and again, is `remote.asking`. Left out on purpose: rollouts of a request that was cut short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.decoder import Offer, Wave
from rs_aligner.generation.rows import Ended
from rs_aligner.generation.vllm.completing import SECTION, Completing, Result, Unsampled
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.controls import Asked, Run, runs_of
from rs_aligner.remote.asking import Asker, Asking
from rs_aligner.remote.endpoints import Endpoint, Role
from rs_aligner.remote.errors import TransportError

SERVER = Role("vLLM server", "samples")
TICK = 0.5  # seconds between two looks of a replica's ranks at each other


class ServersFailed(ConnectionError):
    """No server gave the rollouts that were asked for, as long as they were asked; the message says why."""


class VllmDecoder:
    """Asks vLLM's servers for rollouts. To be closed at the end.

    Args:
        offer: the policy; only its shape and its rank are looked at.
        endpoints: the servers.
        how: they are asked.
    """

    rows_stand_alone = True  # what else is sampled with a row may change its bits, whichever rows that is
    is_served = True

    def __init__(self, offer: Offer, endpoints: Sequence[Endpoint[VllmConnection]], how: Asking) -> None:
        self._offer, self._endpoints, self._how = offer, endpoints, how
        self._asker: Asker[Run, Result, VllmConnection] | None = None
        servers = offer.config.servers
        everything = AllowedTokens(offer.arch.vocab_size, (), 0, offer.allowed)
        self._completing = Completing(everything, servers.request_timeout)

    @property
    def description(self) -> str:
        """What decodes, and where."""
        return f"vLLM at {', '.join(one.url for one in self._endpoints)}"

    def open(self) -> Asker[Run, Result, VllmConnection]:
        """The servers, ready to be asked: waits until one is.

        Raises:
            ConnectionError: none is in time, or the token is wrong.
            ValueError: a server has another model.
        """
        if self._asker is None:
            asker = Asker(self._completing, self._endpoints, self._how)
            try:
                asker.open(self._offer.config.servers.startup_timeout)
            except TransportError as error:
                raise ServersFailed(self._unreachable(error)) from None
            self._asker = asker
        return self._asker

    def close(self) -> None:
        """Cut requests short, and ask nobody any more, until something is decoded again."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None

    def prepare(self, version: int) -> int:
        """The servers' own weights sample, whatever the version."""
        return version

    def decode(self, wave: Wave) -> Iterator[Ended]:
        """As `Decoder.decode`; the rank that speaks for the replica has the rollouts, the others none.

        Raises:
            ServersFailed: on the rank that asks.
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
                results = asking.wait(TICK)
                is_over = self._tick(wave, is_over=asking.is_over)
                for result in results:
                    yield from _rollouts(result)
            if not asking.is_over:
                self.close()  # a stop: servers end what nobody waits for
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
        return runs_of(wave.rows, Asked(controls, wave.end_strings, allowed))

    def _unreachable(self, error: TransportError) -> str:
        seconds = self._offer.config.servers.startup_timeout
        return (
            f"no vLLM server is ready after {seconds:g} s: {error}; correct generation.endpoints, or raise "
            f"{SECTION}.startup_timeout if it is still starting"
        )


class _Asking:
    """The requests of a wave: some under way, others waiting for their turn.

    Args:
        asker: whom they are handed to.
        runs: the requests.
        at_once: how many are under way at most.
    """

    def __init__(self, asker: Asker[Run, Result, VllmConnection], runs: Sequence[Run], at_once: int) -> None:
        self._asker, self._waiting, self._at_once = asker, deque(runs), at_once
        self._under_way = 0
        self._answered: SimpleQueue[Future[Result]] = SimpleQueue()
        self._fill()

    @property
    def is_over(self) -> bool:
        """Whether all are answered, and fetched."""
        return not self._under_way

    def wait(self, seconds: float) -> list[Result]:
        """The answers of so many seconds; without waiting for others once there is one."""
        results = []
        try:
            results.append(self._answered.get(timeout=seconds).result())
            while True:
                results.append(self._answered.get_nowait().result())
        except Empty:
            pass
        self._under_way -= len(results)
        self._fill()
        return results

    def _fill(self) -> None:
        while self._waiting and self._under_way < self._at_once:
            run = self._waiting.popleft()
            self._under_way += 1
            future = self._asker.submit(run, len(run.rows[0].prompt.token_ids))
            future.add_done_callback(self._answered.put)


def _rollouts(result: Result) -> Iterator[Ended]:
    if isinstance(result, Unsampled):
        raise ServersFailed(f"rollouts were asked for in vain: {result.reason}")
    yield from result
