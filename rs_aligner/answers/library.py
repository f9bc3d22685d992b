"""Whether two expressions are the same, where only computer algebra can tell: `math-verify`, in a process.

The library takes up to seconds for a pair and may loop in code that no signal reaches, so it lives in a
process of its own, which is started when it is first needed, ended when a pair takes too long, and started
again for the next. It is asked about single expressions that were read whole (`forms`), never about lists,
relations or sets, where it is lenient. What it is given has no decimals, so it compares exactly.
"""

from __future__ import annotations

import functools
import logging
import resource
import threading
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any

from rs_aligner.child import Child, live
from rs_aligner.rollout import LATE

_MANY = 8192  # pairs that are remembered
_START_LIMIT = 120.0  # seconds that importing it may take
_MEMORY = 4 << 30


class Undecided(Exception):
    """Nobody found out in time whether two answers are the same."""


class Library:
    """`math-verify` in a process of its own.

    What it said of a pair is remembered, and so is that a pair took too long: rollouts repeat each other.

    Args:
        time_limit: seconds that a pair may take; None for no limit.
    """

    def __init__(self, time_limit: float | None = 5.0) -> None:
        self._limit = time_limit
        self._lock = threading.Lock()
        self._child = Child(__name__)
        self._known: OrderedDict[tuple[str, str], bool | str] = OrderedDict()
        self._closed = False
        self.calls = 0

    def same(self, reference: str, answer: str) -> bool:
        """Whether two expressions in LaTeX are the same.

        Raises:
            Undecided: it took too long, or the process died over it.
        """
        pair = reference, answer
        with self._lock:
            found = self._known.get(pair)
            if found is None:
                self.calls += 1
                found = self._known[pair] = self._ask(pair)
                if len(self._known) > _MANY:
                    self._known.popitem(last=False)
        if isinstance(found, str):
            raise Undecided(found)
        return found

    def close(self) -> None:
        """End the process, whatever it does; nothing is asked any more."""
        self._closed = True
        self._child.kill()  # who waits for it goes on
        with self._lock:
            self._child.end()

    def _ask(self, pair: tuple[str, str]) -> bool | str:
        if self._closed:
            return "the judge was closed"
        try:
            if self._child.has_died:  # while it waited
                self._child.end()
            connection = self._child.connection or self._start()
            connection.send(pair)
            if connection.poll(self._limit):
                return bool(connection.recv())
        except (EOFError, OSError):
            self._child.end()
            return "math-verify's process died over this answer"
        self._child.end()
        return f"math-verify took more than {self._limit:g} s over this answer {LATE}"

    def _start(self) -> Connection[Any, Any]:
        connection = self._child.start()
        if not connection.poll(_START_LIMIT):
            self._child.end()
            raise OSError("math-verify could not be loaded")
        if connection.recv() is not True:
            self._child.end()
            raise ImportError("answers that are no numbers need math-verify: pip install math-verify")
        return connection


@functools.cache
def shared() -> Library:
    """The one of this process, for whoever has none of its own."""
    return Library()


def same_expressions(reference: str, answer: str) -> bool:
    """What `math-verify` says of two expressions in LaTeX, and nothing of what it is lenient with."""
    import math_verify
    import sympy

    config = [math_verify.LatexExtractionConfig()]
    found = [
        math_verify.parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)
        for text in (reference, answer)
    ]
    if any(len(one) != 1 or not isinstance(one[0], sympy.Expr) for one in found):
        return False
    [gold], [said] = found
    if len(gold.free_symbols) != len(said.free_symbols):
        return False  # one of them was not read whole
    return bool(math_verify.verify(gold, said, numeric_precision=30, timeout_seconds=None))


def _serve(connection: Connection[Any, Any]) -> None:
    """Pairs come in, answers go out."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        import math_verify  # noqa: F401 - whether it is there
    except ImportError:
        connection.send(False)
        return
    logging.disable(logging.CRITICAL)
    same_expressions("\\ln 2", "2")  # what is loaded late
    connection.send(True)
    while True:
        pair = connection.recv()
        try:
            answer = same_expressions(*pair)
        except Exception:
            answer = False
        connection.send(answer)


def main(descriptor: int, parent: int) -> None:
    """What the process runs."""
    live(descriptor, parent, _serve)
