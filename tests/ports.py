"""Ports for the servers of tests: each is given once, and nobody else gets it.

They are none that the system hands out by itself (to connections, and to whoever binds port 0), none that the
project draws (`remote/listening.py`), and those of one worker are none of another's.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

_FIRST, _EACH, _WORKERS = 10_000, 1_250, 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _WORKERS
# Another run of the tests beside this one, or a program of a test, begins somewhere else.
_drawn = itertools.count(random.SystemRandom().randrange(_EACH))


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    for drawn in itertools.islice(_drawn, _EACH):
        port = _FIRST + _worker * _EACH + drawn % _EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"all of {_EACH} ports are taken")
