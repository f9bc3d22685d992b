"""Where a run can be killed: named points, each a call in the program before, behind or within which it dies.

A point is `SIGKILL` to the process itself, at the n-th call of a function, perhaps of those about one file
only. Nothing in the package knows of this: the function is wrapped in the process that is to die.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn


@dataclass(frozen=True)
class Point:
    """A place in the program.

    Attributes:
        name: for people.
        target: `module:function` or `module:Class.method`.
        when: `before` the call, `after` it, or `half`: within, when half of what is to be written is written.
        count: at which call, counted from 1 in a process.
        about: a pattern that an argument has to match as a path; None for all calls. A number stands for the
            file that is open under it.
    """

    name: str
    target: str
    when: Literal["before", "after", "half"] = "before"
    count: int = 1
    about: str | None = None


def die() -> NoReturn:
    """End this process as the out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def arm(point: Point) -> None:
    """Let this process die at a point."""
    module, _, path = point.target.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    there = vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
    is_static = isinstance(there, staticmethod | classmethod)
    setattr(owner, name, type(there)(_deadly(there.__func__, point)) if is_static else _deadly(there, point))


def _deadly(function: Callable[..., Any], point: Point) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        if point.about is not None and not any(_is_about(one, point.about) for one in arguments):
            return function(*arguments, **keywords)
        calls += 1
        if calls < point.count:
            return function(*arguments, **keywords)
        if point.when == "half":  # os.write(file, content)
            file, content = arguments
            function(file, bytes(content)[: len(content) // 2])
        elif point.when == "after":
            function(*arguments, **keywords)
        die()

    return wrapped


def _is_about(argument: Any, pattern: str) -> bool:
    if isinstance(argument, bool):
        return False
    if isinstance(argument, int):
        try:
            argument = os.readlink(f"/proc/self/fd/{argument}")
        except OSError:
            return False
    return isinstance(argument, str | os.PathLike) and re.search(pattern, os.fspath(argument)) is not None
