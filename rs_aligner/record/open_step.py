"""The scored rollouts of a step that is not selected yet: a folder beside where the step's file will be.

    rollouts/step_000012.open/replica_00.jsonl      one file a replica, in the order in which answers came

A rollout is here the moment that all judges have answered, so that a run that is killed need not ask for it
again: a line is written at once, which survives the end of the process, and is on the disk within
`SYNC_SECONDS`, which survives the end of the machine. A last line that was cut short was not there yet. Left
out on purpose: failures. A restart asks for those again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from rs_aligner.files import make_folder, sync_folder
from rs_aligner.record.lease import LeaseLost
from rs_aligner.record.ledger_line import ROWS, from_line, to_line, with_exact_log_probs
from rs_aligner.record.ledger_row import LedgerRow

_logger = logging.getLogger("rs_aligner")
SYNC_SECONDS = 1.0
_BLOCK = 1 << 16


class OpenStep:
    """A replica's file of an open step. Whichever thread has an answer may write.

    Args:
        folder: of the step; made with the first line.
        replica: whose file.
        check_owner: raises `LeaseLost` where the folder is another run's by now; asked once a second.
    """

    def __init__(self, folder: Path, replica: int, check_owner: Callable[[], None] = lambda: None) -> None:
        self._check_owner = check_owner
        self.path = folder / f"replica_{replica:02d}.jsonl"
        self._lock = threading.Lock()
        self._file: int | None = None
        self._timer: threading.Timer | None = None
        self._error: OSError | LeaseLost | None = None

    def append(self, row: LedgerRow) -> None:
        """Write a line; the operating system has it when this returns. `settle` tells of a full disk."""
        line = to_line(row)
        with self._lock:
            if self._error is not None:
                return  # behind a line that is cut short
            try:
                if self._timer is None:
                    self._check_owner()
                self._write(line)
            except LeaseLost as error:
                self._error = error
                return
            except OSError as error:
                self._error = OSError(error.errno, error.strerror, str(self.path))
                return
            if self._timer is None:
                self._timer = threading.Timer(SYNC_SECONDS, self._sync)
                self._timer.daemon = True
                self._timer.start()

    def settle(self) -> None:
        """See to it that all of it is on the disk, and close the file; `append` opens it again.

        Raises:
            OSError: a line could not be written, here or earlier.
            LeaseLost: the folder is another run's.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._file is not None:
                try:
                    os.fsync(self._file)
                except OSError as error:
                    self._error = self._error or error
                finally:
                    os.close(self._file)
                    self._file = None
            if self._error is not None:
                raise self._error

    def _write(self, line: bytes) -> None:
        if self._file is None:
            self._file = self._opened()
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def _opened(self) -> int:
        """The file, behind its last whole line, its name on the disk."""
        folder = self.path.parent
        make_folder(folder)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(file, _behind_last_newline(file))
        sync_folder(folder)
        sync_folder(folder.parent)
        return file

    def _sync(self) -> None:
        with self._lock:
            self._timer = None
            if self._file is None:
                return
            file = os.dup(self._file)  # so that answers are not held up meanwhile
        try:
            os.fsync(file)
        except OSError as error:
            with self._lock:
                self._error = self._error or error
        finally:
            os.close(file)


def read_open(folder: Path) -> list[LedgerRow]:
    """What lies in an open step, of all its replicas; nothing where there is no such folder.

    A last line without its newline was being written when the process ended. Another line that is not as it
    was written is left out, with a warning that names it.
    """
    rows = []
    for path in sorted(folder.glob("replica_*.jsonl")):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    continue
                try:
                    rows.append(with_exact_log_probs(from_line(line, f"{path}:{number}", ROWS)))
                except ValueError as error:
                    _logger.warning("%s; it is left out, and sampled and judged again", error)
    return rows


def _behind_last_newline(file: int) -> int:
    """Where the last whole line of an open file ends."""
    end = os.fstat(file).st_size
    while end:
        begin = max(0, end - _BLOCK)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
