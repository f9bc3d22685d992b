"""The program's objects, as the tests' process has them: stand-ins that ask the program's process.

What comes back is plain data, or another stand-in, which is equal to nothing that is not one, neither true
nor false, and cannot play a text or a list: whatever a program's object would say of itself, a test does not
take for an answer.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rs_aligner.sandbox.link import Link
from rs_aligner.sandbox.plain import NotPlain, decode, encode

_CLASS = 2  # a class, by its name, is asked for anything, as are its objects, of rank 1; other objects less
_BUILT_IN = (str, bytes, int, float, list, tuple, dict, set)
_HELPERS = {
    "isclose": "math",
    "deepcopy": "copy",
    "Counter": "collections",
    "defaultdict": "collections",
    "deque": "collections",
    "OrderedDict": "collections",
    "Fraction": "fractions",
    "Decimal": "decimal",
}


class _OfProgram(Exception):
    """Where an error came from that the program raised."""


def is_programs(error: BaseException) -> bool:
    """Whether an error is one that the program raised."""
    return isinstance(error.__cause__, _OfProgram)


class Remotes:
    """The objects of the program that are known here, and our functions that it knows.

    Args:
        link: to the program.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._functions: list[Callable[..., Any]] = []
        self._rank = 0

    def names(self, wanted: Mapping[str, bool]) -> dict[str, Any]:
        """What the program has of these names.

        What tests compare by is not left to it: modules of the standard library, and helpers of theirs that
        nobody asks a program for, are imported here.

        Args:
            wanted: the names, and whether the tests call them.

        Raises:
            RuntimeError: the program failed before it was asked.
        """
        self._link.send({"do": "names", "names": list(wanted)})
        answer = self._link.receive()
        if answer["problem"]:
            raise RuntimeError(answer["problem"])
        found: dict[str, Any] = {}
        for name, is_called in wanted.items():
            said = answer["names"].get(name, {"module": name})
            if name in _HELPERS:
                found[name] = getattr(importlib.import_module(_HELPERS[name]), name)
            elif name in sys.stdlib_module_names and not is_called:
                found[name] = _module(name)
            elif "value" in said:
                self._rank = _CLASS if name[:1].isupper() else 0
                found[name] = self._decode(said["value"])
            elif said["module"] in sys.stdlib_module_names:
                found[name] = _module(said["module"])
        return found

    def ask(self, what: str, *arguments: Any, **keywords: Any) -> Any:
        """Have something done by the program.

        Raises:
            ProgramEnded: it is gone.
            NotPlain: an argument that cannot travel.
            Exception: what the program raised, of the nearest class of Python's own.
        """
        encoded = [self._encode(value) for value in arguments]
        named = {name: self._encode(value) for name, value in keywords.items()}
        self._link.send({"do": what, "args": encoded, "keywords": named})
        while "callback" in (answer := self._receive()):
            self._link.send(self._called_back(answer))
        if "error" in answer:
            raise _error(answer["error"])(str(answer["text"])) from _OfProgram()
        for place, changed in enumerate(answer.get("args", ())):
            _follow(arguments[place], self._decode(changed))
        self._rank = int(what == "call" and _rank_of(arguments[0]) == _CLASS)
        return self._decode(answer["value"])

    def _receive(self) -> dict[str, Any]:
        answer = self._link.receive()
        if not isinstance(answer, dict):
            raise ValueError("the program answered nonsense")
        return answer

    def _called_back(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            function = self._functions[asked["callback"]]
            return {"value": self._encode(function(*map(self._decode, asked["args"])))}
        except Exception as error:
            return {"error": type(error).__name__}

    def _encode(self, value: Any) -> Any:
        return encode(value, self._refer)

    def _decode(self, value: Any) -> Any:
        return decode(value, self._resolve)

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return object.__getattribute__(value, "_number")
        if not callable(value):
            raise NotPlain(f"a {type(value).__name__} cannot be handed to the program")
        self._functions.append(value)
        return {"k": len(self._functions) - 1}

    def _resolve(self, reference: Any) -> Any:
        if isinstance(reference, dict):
            return self._functions[reference["k"]]
        return Remote(self, int(reference), self._rank)


class Remote:
    """An object of the program.

    It is asked for attributes, calls, items and its text; not what it is equal to.
    """

    __slots__ = ("_number", "_rank", "_remotes")
    __hash__ = None  # type: ignore[assignment]  # in a set it would be told from its like

    def __init__(self, remotes: Remotes, number: int, rank: int) -> None:
        object.__setattr__(self, "_rank", rank)
        object.__setattr__(self, "_remotes", remotes)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not _rank_of(self) and any(hasattr(kind, name) for kind in _BUILT_IN):
            raise NotPlain(f"an object of the program is asked for {name}, as if it were a text or a list")
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _ask(self, "call", *arguments, **keywords)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            raise NotPlain("an object of the program is compared with something that is none")
        return _ask(self, "eq", other) is True

    def __bool__(self) -> bool:
        raise NotPlain("an object of the program is neither true nor false")

    def __iter__(self) -> Iterator[Any]:
        iterator = _ask(self, "iter")
        while True:
            try:
                item = _ask(iterator, "next")
            except StopIteration:
                return
            yield item

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __len__(self) -> int:
        return int(_ask(self, "len"))

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", key)

    def __str__(self) -> str:
        return str.__str__(_ask(self, "str"))

    def __repr__(self) -> str:
        return str.__str__(_ask(self, "repr"))


def _rank_of(remote: Any) -> int:
    return object.__getattribute__(remote, "_rank") if isinstance(remote, Remote) else 0


def _ask(remote: Any, what: str, *arguments: Any, **keywords: Any) -> Any:
    if not isinstance(remote, Remote):
        raise NotPlain("the program said that it is no object")
    remotes: Remotes = object.__getattribute__(remote, "_remotes")
    return remotes.ask(what, remote, *arguments, **keywords)


def _module(name: str) -> Any:
    """A module of the standard library; None where this interpreter was made without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _error(parents: Any) -> type[Exception]:
    """The nearest of Python's own errors."""
    for name in parents:
        known = getattr(builtins, str(name), None)
        if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, UnicodeError):
            return known
    return Exception


def _follow(ours: Any, theirs: Any) -> None:
    """Change what was handed over as the program changed its copy."""
    if type(ours) is not type(theirs) or isinstance(ours, Remote) or ours == theirs:
        return
    if isinstance(ours, (list, bytearray)):
        if isinstance(ours, list) and len(ours) == len(theirs):
            for place, item in enumerate(ours):
                if isinstance(item, (list, dict, set, bytearray)) and type(item) is type(theirs[place]):
                    _follow(item, theirs[place])
                else:
                    ours[place] = theirs[place]
        else:
            ours[:] = theirs
    elif isinstance(ours, (dict, set)):
        ours.clear()
        ours.update(theirs)
