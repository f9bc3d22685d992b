"""One run, one owner: who may write in a folder, as a lease that its owner renews and everybody can read.

An owner's claim is a small file, `owner/claim_000001.json`: host, process, since when, and a random token. It
is made under a name of its own and then linked, so it is whole or not there, and of all who see the same
claims only one can make the next. Its owner touches it every `RENEW_SECONDS`, and looks whether it is still
there before each write: who takes over removes it, and whoever finds that has lost the folder.

Whether an owner lives is told by its process where that can be seen (the same boot of the same host, the same
process ids), at once. Elsewhere by its silence: a claim that the waiting process itself sees untouched for
`SILENCE_SECONDS`. Clocks of hosts are never compared.

Only what NFS does too: exclusive links, and files opened by name. Left out on purpose: locks of the kernel
(`flock`), which some network file systems take and do not hold, and fencing in the storage itself: an owner
that is stopped between its look and its write, for as long as it takes to take over, still makes that write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rs_aligner.record.claims import Claim, Owner, claims_in, link, number_of, read_claim

_logger = logging.getLogger("rs_aligner")

RENEW_SECONDS = 10.0
SILENCE_SECONDS = 60.0
_LOOK_SECONDS = 1.0


class LeaseLost(RuntimeError):
    """Somebody else has the folder: nothing more may be written there."""


class Clock(Protocol):
    """What of the module `time` is used here."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class Lease:
    """The right to write in a folder. A context manager: leaving it gives the right back.

    Args:
        folder: where the claims are; made where there is none, and gone when the right is given back.
        what: the key and the value that led here, for messages.
        me: who asks; None for this process.
        clock: of this process.
        silence: seconds without a sign, after which an owner that cannot be seen counts as dead.
        renew_every: seconds between renewals by a thread of this process; None for no thread.
    """

    def __init__(
        self,
        folder: Path,
        what: str,
        *,
        me: Owner | None = None,
        clock: Clock = time,
        silence: float = SILENCE_SECONDS,
        renew_every: float | None = RENEW_SECONDS,
    ) -> None:
        self.folder, self.what = folder, what
        self.owner = me or Owner.here()
        self._clock, self._silence, self._renew_every = clock, silence, renew_every
        self._content = self.owner.to_bytes()
        self._path: Path | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> Self:
        """Take the folder, waiting where it takes time to see whether its owner lives.

        Raises:
            ValueError: somebody has it, who lives: who that is, and what can be done. Or nothing can be
                written there.
        """
        try:
            self._path = self._take()
        except OSError as error:
            raise ValueError(f"{self.what} cannot be used: {error.strerror}: {error.filename}") from None
        if self._renew_every is not None:
            self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
            self._thread.start()
        return self

    def _take(self) -> Path:
        dead: set[tuple[Path, bytes]] = set()
        while True:
            unfinished = self._write_claim()
            try:
                there = claims_in(self.folder)
                alive = [claim for claim in there if claim.name not in dead]
                if alive:
                    dead |= self._dead_of(alive)
                    continue
                number = max((number_of(claim.path) for claim in there), default=0) + 1
                path = self._put(unfinished, number, {claim.name for claim in there})
                if path is not None:
                    return path
            finally:
                unfinished.unlink(missing_ok=True)

    def check(self) -> None:
        """See that the folder is still this process's; to be called before each write there.

        Raises:
            LeaseLost: it is not.
        """
        path = self._path
        if path is None or read_claim(path) != self._content:
            there = claims_in(self.folder)
            by = f" by {there[-1].owner}" if there and there[-1].owner else ""
            raise LeaseLost(f"{self.what} was taken over{by}; this process writes nothing more there")

    @property
    def shared(self) -> SharedLease:
        """For the other ranks of this process's run."""
        assert self._path is not None
        return SharedLease(str(self._path), self._content, self.what)

    def renew(self) -> None:
        """Show that this process lives.

        Raises:
            LeaseLost: the folder is somebody else's.
        """
        self.check()
        assert self._path is not None
        now = time.time_ns()
        with contextlib.suppress(FileNotFoundError):  # the next check will tell
            os.utime(self._path, ns=(now, now))

    def give_back(self) -> None:
        """Let the next one have the folder at once; nothing happens where it is somebody else's by now."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        path, self._path = self._path, None
        if path is not None and read_claim(path) == self._content:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another claim, or a claimant
                self.folder.rmdir()

    def __enter__(self) -> Self:
        return self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def _keep(self) -> None:
        while not self._end.wait(self._renew_every):
            try:
                self.renew()
            except LeaseLost:
                return  # whoever writes next is told
            except OSError as error:  # of a file system that is away for a while
                _logger.warning("%s: the lease cannot be renewed: %s", self.what, error)

    def _write_claim(self) -> Path:
        """The claim under a name that is nobody's; made before looking, so that NFS lists the folder anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"claimant_{self.owner.token}.tmp"
        try:
            with unfinished.open("wb") as file:
                file.write(self._content)
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:  # its folder was given back just now
            return self._write_claim()
        return unfinished

    def _put(self, unfinished: Path, number: int, judged: set[tuple[Path, bytes]]) -> Path | None:
        """Make the claim with this number; None where somebody else was faster.

        It holds if, once it is there, the others that are there are those that were judged dead.
        """
        path = self.folder / f"claim_{number:06d}.json"
        try:
            link(unfinished, path)
        except (FileExistsError, FileNotFoundError):
            if read_claim(path) != self._content:  # an answer of NFS may be lost, and the link be there
                return None
        others = [claim for claim in claims_in(self.folder) if claim.path != path]
        if not {claim.name for claim in others} <= judged or read_claim(path) != self._content:
            path.unlink(missing_ok=True)
            self._clock.sleep(secrets.randbelow(1000) / 1e4)  # so that two of us do not do this for ever
            return None
        for claim in others:
            claim.path.unlink(missing_ok=True)
        return path

    def _dead_of(self, claims: list[Claim]) -> set[tuple[Path, bytes]]:
        """Which of these claims are of owners that have ended; waits where only silence tells.

        Raises:
            ValueError: one of them lives.
        """
        place = self.owner.place
        unseen = []
        for claim in claims:
            match claim.owner.is_dead(place) if claim.owner else None:
                case False:
                    raise self._taken(claim)
                case None:
                    unseen.append(claim)
        if unseen:
            self._await_silence(unseen)
        return {claim.name for claim in claims}

    def _await_silence(self, claims: list[Claim]) -> None:
        """Wait until these claims have shown no sign of life for long enough, or are gone."""
        owner = claims[-1].owner or "somebody whose claim cannot be read"
        _logger.info(
            "%s was last used by %s: waiting %g s for a sign of life", self.what, owner, self._silence
        )
        began = self._clock.monotonic()
        while self._clock.monotonic() - began < self._silence:
            self._clock.sleep(min(_LOOK_SECONDS, self._silence))
            now = {claim.name: claim for claim in claims_in(self.folder)}
            claims = [claim for claim in claims if claim.name in now]
            for claim in claims:
                if now[claim.name].touched != claim.touched:
                    raise self._taken(claim)
            if not claims:
                return

    def _taken(self, claim: Claim) -> ValueError:
        owner = claim.owner
        if owner is None:
            who, end = "a process whose claim cannot be read", "end it"
        elif (owner.pid, owner.place) == (os.getpid(), self.owner.place):
            who, end = f"this very process, since {owner.since}", "let the other run end first"
        else:
            who, end = str(owner), f"end it (kill {owner.pid} on {owner.host})"
        return ValueError(
            f"{self.what} is in use by {who}: wait until it has ended, {end}, or choose another place"
        )


@dataclass(frozen=True)
class SharedLease:
    """The first rank's lease as the other ranks know it: they look at it before they write, and no more.

    Attributes:
        path: the claim.
        content: what it holds as long as it is the first rank's.
        what: for messages.
    """

    path: str
    content: bytes
    what: str

    def check(self) -> None:
        """As `Lease.check`."""
        if read_claim(Path(self.path)) != self.content:
            raise LeaseLost(f"{self.what} was taken over; this process writes nothing more there")
