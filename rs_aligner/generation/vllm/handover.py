"""The weights that all servers are to have, and the door by which each of them gets them.

A server samples once it has gone through the door: at the start, whenever the weights are others, and when it
comes back after it was left out, started again perhaps with what it was started with at first. Each rank that
asks servers has the door before its own; the first rank's goes first, and the others' then find the weights
there, by the word in the server's answers. Where nothing is trained there is nothing to hand over, and the
door only hears whether a server was started from the same model.

Left out on purpose: when the weights are others (`decoder.py`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rs_aligner.generation.decoder import Offer
from rs_aligner.generation.vllm.canary import Canary, canary_of
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.folder import Sent, WeightsFolder, remove
from rs_aligner.generation.vllm.weights import Update, check_canary
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.retry import is_transient

_UNKNOWN = 404  # of a name that a server has no model for
_BROKEN = 500  # of a vLLM whose workers could not do what was asked
_OTHER_BASE = "another run has given it whole weights, and adapters go beside those that it was started with"
_ADAPTED = (
    "adapters go beside the weights that it was started with: start it from the folder that the run began "
    "with, or without lora_rank, and whole weights travel"
)
_TYPED = "start it in the type of the policy's weights, by vllm.dtype"

_logger = logging.getLogger("rs_aligner")


class Handover:
    """What servers are to have; on each rank, whose threads use the door.

    Args:
        offer: the policy, and where its weights may lie.
        timeout: seconds for each answer of a server.
    """

    def __init__(self, offer: Offer, timeout: float) -> None:
        self._offer, self._timeout = offer, timeout
        self._folder: WeightsFolder | None = None
        self.sent: Sent | None = None
        self._expected: Canary | None = None  # of servers that are handed nothing
        # What follows is guarded by this lock.
        self._changed = threading.Condition()
        self._is_shut = False
        self._inside: set[VllmConnection] = set()
        self._has_passed = False  # some server, with weights that it was sent

    def begin(self, lora_rank: int) -> None:
        """Say what is sent: adapters alone, if the policy has some and servers were started for them.

        Args:
            lora_rank: of the largest adapters that all servers take; 0 for none. The same on every rank.
        """
        exports = self._offer.exports
        if exports is not None:
            as_adapter = exports.adapters is not None and 0 < exports.rank <= lora_rank
            arch, runtime = self._offer.arch, self._offer.runtime
            self._folder = WeightsFolder(exports, arch, runtime, as_adapter=as_adapter)
            if runtime.rank == 0:
                what = "adapters alone" if as_adapter else "whole"
                _logger.info("the policy's weights travel to the servers %s, by %s", what, exports.root)

    def expect(self) -> None:
        """Let through only servers that were started from this model; every rank calls this.

        Raises:
            CannotDecode: our own decoder cannot say what they answer.
        """
        self._expected = canary_of(self._offer)

    def write(self, version: int, most: int | None) -> int:
        """Let weights be what servers are to have from now on; every rank calls this.

        Args:
            version: of the model's present weights.
            most: versions that what an earlier start left may be behind; None: it is not looked for.

        Returns:
            The version that they are of.

        Raises:
            CannotDecode: our own decoder cannot say what they answer.
            OSError: they cannot be written; every rank raises it.
        """
        assert self._folder is not None, "begin comes first"
        sent = None if most is None else self._folder.newest(version, most)
        self.sent = sent or self._folder.write(version, canary_of(self._offer))
        return self.sent.version

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Let nobody through meanwhile; who is inside is sent away first."""
        with self._changed:
            self._is_shut = True
            for link in self._inside:
                link.abort()
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._is_shut = False

    def admit(self, link: VllmConnection, base: str) -> None:
        """The door: see to it that a server computes with the weights that it should have.

        Args:
            link: to the server, which has just answered by it.
            base: the name of its model.

        Raises:
            TransportError: it does not now.
            ValueError: it cannot; with what would work.
        """
        with self._changed:
            if self._is_shut:
                raise TransportError("new weights are being written", "unreachable")
            sent, expected = self.sent, self._expected
            if sent is None and expected is None:
                return  # nobody samples from it before there are some
            self._inside.add(link)
        try:
            problem = None
            if sent is not None:
                if sent.is_adapter and link.weights is not None:
                    raise ValueError(f"{_OTHER_BASE}: start it again")
                if link.weights != sent.word:
                    self._update(Update(link, sent, base, self._timeout))
                problem = check_canary(link, sent.canary, sent.name(base), self._timeout)
            elif expected is not None:
                problem = check_canary(link, expected, base, self._timeout)
        finally:
            with self._changed:
                self._inside.discard(link)
                self._changed.notify_all()
        if problem is not None and sent is not None:
            mends = "" if self._has_passed else f"; {_ADAPTED if sent.is_adapter else _TYPED}"
            raise ValueError(f"it has other weights than it was sent: {problem}{mends}")
        if problem is not None:
            raise ValueError(
                f"it has other weights than pretrained_checkpoint.restore_from_path (with its adapters): "
                f"{problem}; start it from that folder, in the type of the policy's weights"
            )
        self._has_passed |= sent is not None

    def _update(self, update: Update) -> None:
        """Let a server take what was sent, as `admit` does."""
        try:
            update.run()
        except TransportError as error:
            if self._has_passed or (is_transient(error) and error.status != _BROKEN):
                raise
            raise ValueError(f"{error}; vLLM's log says why") from error  # as the next one, very likely

    def name(self, base: str) -> str:
        """By which a server with a model of this name is asked."""
        return base if self.sent is None else self.sent.name(base)

    def check(self, link: VllmConnection, status: int | None = 200) -> None:
        """See that what a server has just answered is of the weights that it was sent.

        Args:
            link: to it.
            status: of its answer; None where there was none.

        Raises:
            TransportError: it is not: it was started again meanwhile, or somebody else has given it others.
        """
        sent = self.sent
        if sent is None or status is None:
            return
        if sent.is_adapter and link.weights is not None:
            raise TransportError(_OTHER_BASE, "unreachable")
        is_lost = status == _UNKNOWN if sent.is_adapter else link.weights != sent.word
        if is_lost:
            what = "it has not the weights that it was sent any more: it was started again"
            raise TransportError(what, "unreachable")

    def remove(self) -> None:
        """Take the folder away, where the weights are no longer needed."""
        if self._offer.exports is not None and self._offer.runtime.rank == 0:
            remove(self._offer.exports.root)
