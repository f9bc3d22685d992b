"""`status.json` in a run's folder: what the run is doing, for supervisors and people who look in.

    {"state": "sampling", "step": 12, "steps": 250, "attempt": 2, "pid": 4711, "host": "node7",
     "started": 1790000000.0, "heartbeat": 1790000123.0, "got_on": 1790000122.5, "reason": null}

Times are seconds since 1970. The first rank writes it, whole, at every change and at least every
`BEAT_SECONDS`: a heartbeat that is older means that the process is gone or stands still. `got_on` is when the
work last got on; `reason` says why a run stopped or failed. Left out on purpose: syncing it; it tells the
present only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rs_aligner import progress
from rs_aligner.files import put
from rs_aligner.stopping import Stopped

BEAT_SECONDS = 10.0
LEAST_SECONDS = 0.2  # between two writes
NAME = "status.json"


class Status:
    """Keeps the file, in a thread of its own, until the run ends.

    Args:
        folder: of the run; it exists.
        may_write: raises where the folder is no longer this run's; nothing more is written then.
    """

    def __init__(self, folder: Path, may_write: Callable[[], None] = lambda: None) -> None:
        self._path, self._may_write = folder / NAME, may_write
        self._begun = time.time()
        self._attempt = int(read_status(folder).get("attempt", 0)) + 1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="status", daemon=True)
        progress.begin()
        self._thread.start()

    def end(self, error: BaseException | None) -> None:
        """Say how the run ended; nothing is written behind it."""
        self._over.set()
        progress.changed.set()
        self._thread.join()
        if error is None:
            progress.enter("finished")
        else:
            progress.enter("stopped" if isinstance(error, Stopped) else "failed")
        self._write(None if error is None else str(error) or type(error).__name__)

    def _beat(self) -> None:
        while not self._over.is_set():
            progress.changed.clear()
            self._write(None)
            if not self._over.wait(LEAST_SECONDS):
                progress.changed.wait(BEAT_SECONDS - LEAST_SECONDS)

    def _write(self, reason: str | None) -> None:
        now, doing = time.time(), progress.current()
        content = {
            "state": doing.phase,
            "step": doing.step,
            "steps": doing.steps,
            "attempt": self._attempt,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": round(self._begun, 3),
            "heartbeat": round(now, 3),
            "got_on": round(now - progress.seconds_since(), 3),
            "reason": reason,
        }
        with contextlib.suppress(OSError, RuntimeError):  # a full disk, or another owner: the run tells
            self._may_write()
            put(self._path, f"{json.dumps(content)}\n".encode())


def read_status(folder: Path) -> dict[str, Any]:
    """What a run's `status.json` says; nothing where there is none that can be read."""
    try:
        content = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
