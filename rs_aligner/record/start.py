"""A start of a run in its folder: it takes the folder, sees whether it may go on there, and notes with what.

The first rank does it; the others are told. Left out on purpose: each of these things by itself (`lease`,
`format`, `attempts`), and what the run then writes (`run`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rs_aligner import __version__
from rs_aligner.config import ExpManagerBase
from rs_aligner.files import write_whole
from rs_aligner.record.attempts import Attempt, compare, latest
from rs_aligner.record.format import RunRecord, check, work_in
from rs_aligner.record.lease import Lease, SharedLease
from rs_aligner.record.metrics import checked_rows


class Start:
    """One of the starts of a run.

    Args:
        config: the `exp_manager` section.
        command: which command's run it is.
        is_first: whether this is the first rank.

    Attributes:
        fingerprint: of what decides rollouts and scores; "" where nobody has said it.
        has_changed: whether it goes on with something else than the start before it, which was allowed.
    """

    def __init__(self, config: ExpManagerBase, command: str, *, is_first: bool) -> None:
        self.folder, self.fingerprint, self.has_changed = Path(config.explicit_log_dir), "", False
        self._config, self._is_first = config, is_first
        self._record = RunRecord(command)
        self._attempt: Attempt | None = None
        self._lease: Lease | SharedLease | None = None

    def take(self, checkpoints: Sequence[Path]) -> None:
        """Take the folder, on the first rank, unless that is done.

        Args:
            checkpoints: those that are there.

        Raises:
            ValueError: another run is at work there, nothing can be written there, or what is there cannot be
                gone on with.
        """
        if not self._is_first or self._lease is not None:
            return
        what = f"exp_manager.explicit_log_dir={self.folder}"
        lease = Lease(self.folder / "owner", what).take()
        try:
            made = work_in(self.folder)
            if made and not self._config.resume_if_exists:
                raise ValueError(
                    f"{what} has {' and '.join(made)} of an earlier start, and "
                    "exp_manager.resume_if_exists is false: choose another folder, or set it to true"
                )
            self._record = check(self.folder, self._record.command, checkpoints)
            checked_rows(self.folder / "metrics.jsonl")
        except BaseException:
            lease.give_back()
            raise
        self._lease = lease

    def prepare(self, attempt: Attempt, checkpoints: Sequence[Path]) -> None:
        """Say with what the run is to go to work, and see whether it may.

        Raises:
            ChangedSettings: it would mix two runs, and `exp_manager.allow_changes` does not let it.
            ValueError: with what the run was made before cannot be read.
        """
        number, allow = self._record.attempts, self._config.allow_changes
        allowed: list[str] = []
        if checkpoints or work_in(self.folder):
            before = latest(self.folder / "config", allow)
            if before is not None:
                number = max(number, before.number)
                allowed = compare(before, attempt, self.folder, allow)
        self._attempt = replace(attempt, number=number + 1, allowed=allowed)
        self.fingerprint, self.has_changed = attempt.fingerprint, bool(allowed)

    def share(self, gather: Callable[[Any], list[Any]]) -> None:
        """Tell the other ranks what the first one knows; every rank must call it."""
        told = None
        if isinstance(self._lease, Lease):
            told = self._lease.shared, self.fingerprint, self.has_changed
        shared, self.fingerprint, self.has_changed = gather(told)[0]
        self._lease = self._lease or shared

    def check_owner(self) -> None:
        """See that the folder is still this run's.

        Raises:
            LeaseLost: another run has it now.
        """
        if self._lease is not None:
            self._lease.check()

    def begin(self) -> None:
        """Note that the run begins to write, and with what."""
        self.check_owner()
        if self._attempt is not None:
            self._attempt.write(self.folder / "config")
            given = OmegaConf.to_yaml(OmegaConf.create(self._attempt.given))
            write_whole(self.folder / "config.yaml", [given.encode()], self.check_owner)
            self._record = replace(self._record, attempts=self._attempt.number)
        self._record = replace(self._record, rs_aligner=__version__)
        self._record.write(self.folder)

    def note_saved(self, step: int) -> None:
        """Note that a checkpoint was written."""
        self.check_owner()
        self._record = replace(self._record, saved=step)
        self._record.write(self.folder)

    def give_back(self) -> None:
        """Let the next run have the folder."""
        if isinstance(self._lease, Lease):
            self._lease.give_back()
        self._lease = None
