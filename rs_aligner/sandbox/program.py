"""What runs a program in its jail: as a script, or as a module whose functions are called.

Nothing here is to be trusted once the program runs, which shares this process: it can change every line of
it. So nothing here knows what is expected of the program, and whoever reads what it answers takes it for
data.
"""

from __future__ import annotations

import atexit
import json
import operator
import os
import random
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from rs_aligner.sandbox.link import Link
from rs_aligner.sandbox.plain import decode, encode

MODULE = "solution"
"""The name of a program as a module."""

_MOST_PARENTS = 32
# What the owner of an object is asked for, beside its attributes and calls.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "str": str,
    "repr": repr,
    "iter": iter,
    "next": next,
    "getitem": operator.getitem,
    "eq": lambda one, other: bool(one == other),
}


def run_script(source: str) -> int:
    """Run a program as Python would: input at 0, output at 1; returns its exit status."""
    _open_streams()
    sys.argv = ["program.py"]
    try:
        status = _status_of(lambda: _execute(source, "__main__"))
        threading._shutdown()  # type: ignore[attr-defined]  # as at the end of an interpreter
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        return 1
    return status


def run_calls(source: str, name: str, calls: list[Any], output: int) -> int:
    """Call a function of a program for each of the calls; writes a line for each that returned.

    Args:
        source: the program.
        name: of the function, or of a method of its class `Solution`.
        calls: the arguments of each, encoded.
        output: a descriptor; a line is the call's number and what was returned, encoded.
    """
    module = _execute(source, MODULE)
    for number, arguments in enumerate(calls):
        try:
            function = _function(module, name)
            line = json.dumps([number, encode(function(*map(decode, arguments)))])
        except Exception:
            continue
        os.write(output, line.encode() + b"\n")
    return 0


def answer_calls(source: str, link: Link) -> int:
    """Run a program as a module, then do what the other side asks for, until it asks no more."""
    problem, module = "", types.ModuleType(MODULE)
    try:
        module = _execute(source, MODULE)
    except Exception as error:
        problem = type(error).__name__
    owner = _Owner(vars(module), problem, link)
    while True:
        link.send(owner.answer(link.receive()))


class _Owner:
    """The program's objects that the other side knows by a number, and what is done with them."""

    def __init__(self, names: dict[str, Any], problem: str, link: Link) -> None:
        self._names, self._problem, self._link = names, problem, link
        self._objects: list[Any] = []

    def answer(self, asked: dict[str, Any]) -> Any:
        if asked["do"] == "names":
            return {"problem": self._problem, "names": self._look_up(asked["names"])}
        arguments = [decode(value, self._resolve) for value in asked["args"]]
        keywords = {name: decode(value, self._resolve) for name, value in asked.get("keywords", {}).items()}
        before = self._all(asked["args"])
        try:
            value = self._do(asked["do"], arguments, keywords)
            answer = {"value": encode(value, self._refer)}
            after = [encode(argument, self._refer) for argument in arguments]
        except Exception as error:
            parents = [parent.__name__ for parent in type(error).__mro__][:_MOST_PARENTS]
            return {"error": parents, "text": str(error)}
        # The other side's lists change with ours, as they would in one process.
        return answer if after == before else {**answer, "args": after}

    def _do(self, what: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        if what == "call":
            return arguments[0](*arguments[1:], **keywords)
        if what == "get":
            return getattr(*arguments)
        if what == "set":
            return setattr(*arguments)
        return OPERATIONS[what](*arguments)

    def _all(self, encoded: list[Any]) -> list[Any]:
        return [encode(decode(value, self._resolve), self._refer) for value in encoded]

    def _look_up(self, names: list[str]) -> dict[str, Any]:
        found = {name: self._names[name] for name in names if name in self._names}
        return {
            name: {"module": value.__name__}
            if isinstance(value, types.ModuleType)
            else {"value": encode(value, self._refer)}
            for name, value in found.items()
        }

    def _refer(self, value: Any) -> Any:
        if isinstance(value, _Callback):
            return {"k": value.number}
        for number, known in enumerate(self._objects):
            if known is value:
                return number
        self._objects.append(value)
        return len(self._objects) - 1

    def _resolve(self, reference: Any) -> Any:
        if isinstance(reference, dict):
            return _Callback(reference["k"], self._link, self)
        return self._objects[reference]

    def call_back(self, number: int, arguments: tuple[Any, ...]) -> Any:
        self._link.send({"callback": number, "args": [encode(value, self._refer) for value in arguments]})
        while True:
            message = self._link.receive()
            if "do" not in message:
                break
            self._link.send(self.answer(message))
        if "error" in message:
            raise RuntimeError(message["error"])
        return decode(message["value"], self._resolve)


class _Callback:
    """A function of the other side."""

    def __init__(self, number: int, link: Link, owner: _Owner) -> None:
        self.number, self._link, self._owner = number, link, owner

    def __call__(self, *arguments: Any) -> Any:
        return self._owner.call_back(self.number, arguments)


def _execute(source: str, name: str) -> types.ModuleType:
    """Run a program's text as a module of this name."""
    random.seed(0)  # a program has the same score each time
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, "program.py", "exec"), vars(module))
    return module


def _function(module: types.ModuleType, name: str) -> Callable[..., Any]:
    names = vars(module)
    found = names[name] if name in names else getattr(names["Solution"](), name)
    return found  # who calls it finds out


def _status_of(run: Callable[[], object]) -> int:
    """The exit status that Python would end with."""
    try:
        run()
    except SystemExit as leaving:
        code = leaving.code
        return code if isinstance(code, int) else int(code is not None)
    except BaseException:
        return 1
    return 0


def _open_streams() -> None:
    """Standard input and output anew: this process was forked, and its descriptors are others now."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115  # stays
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115  # stays
