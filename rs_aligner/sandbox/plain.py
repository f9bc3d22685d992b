"""Values as text and back, so that a program can hand over what it found, and nothing that acts.

Numbers, texts, bytes, lists, tuples, sets, dicts, ranges, fractions and decimals travel as what they are,
values of their subclasses as the plain kind: what an object makes of `==` stays where it is. What is of no
such kind can travel as a reference, by which its owner is asked. Left out on purpose: pickle, which runs
code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

_EXACT = 1 << 53
_SEQUENCES: dict[str, Callable[[Any], Any]] = {"t": tuple, "s": set, "z": frozenset}


class NotPlain(TypeError):
    """A value that does not travel."""


def encode(value: Any, refer: Callable[[Any], Any] | None = None) -> Any:
    """A value as JSON has it.

    Args:
        value: what is to travel.
        refer: what stands for a value that cannot; None for an error.

    Raises:
        NotPlain: it cannot, nor does anything stand for it.
        RecursionError: it contains itself, or is nested too deeply.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if abs(number) < _EXACT else {"i": hex(number)}
    if isinstance(value, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else {"f": repr(real)}
    if isinstance(value, list):
        return [encode(item, refer) for item in list.__iter__(value)]
    return _encode_rarer(value, refer)


def decode(value: Any, resolve: Callable[[Any], Any] | None = None) -> Any:
    """The value of what `encode` gave.

    Args:
        value: as JSON has it.
        resolve: the object of a reference; None where there are none.

    Raises:
        ValueError: it is nothing that `encode` gives.
    """
    if isinstance(value, list):
        return [decode(item, resolve) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("a value with several kinds")
    ((kind, held),) = value.items()
    if kind == "r" and resolve is not None:
        return resolve(held)
    try:
        return _decode_rarer(kind, held, resolve)
    except (TypeError, ArithmeticError, KeyError) as error:  # of an element that has no hash, say
        raise ValueError(f"no value of the kind {kind!r}: {error}") from None


def _encode_rarer(value: Any, refer: Callable[[Any], Any] | None) -> Any:
    for kind, made in _SEQUENCES.items():
        if isinstance(value, made):  # type: ignore[arg-type]  # they are classes
            return {kind: [encode(item, refer) for item in made.__iter__(value)]}  # type: ignore[attr-defined]  # as above
    if isinstance(value, dict):
        return {"d": [[encode(key, refer), encode(item, refer)] for key, item in dict.items(value)]}
    if isinstance(value, (bytes, bytearray)):
        return {"y" if isinstance(value, bytearray) else "b": bytes(value).hex()}
    if isinstance(value, complex):
        return {"c": [encode(value.real), encode(value.imag)]}
    if isinstance(value, range):
        return {"g": [encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, (Decimal, Fraction)):
        return {"D" if isinstance(value, Decimal) else "F": str(value)}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), refer)
    if refer is None:
        raise NotPlain(f"a {type(value).__name__} is no plain data")
    return {"r": refer(value)}


def _decode_rarer(kind: str, held: Any, resolve: Callable[[Any], Any] | None) -> Any:
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(item, resolve) for item in held)
    if kind == "d":
        return {decode(key, resolve): decode(item, resolve) for key, item in held}
    if kind in ("b", "y"):
        return bytes.fromhex(held) if kind == "b" else bytearray.fromhex(held)
    if kind == "i":
        return int(str(held), 16)
    if kind == "f":
        return float(held)
    if kind == "c":
        real, imaginary = map(decode, held)
        return complex(real, imaginary)
    if kind == "g":
        return range(*map(decode, held))
    return {"D": Decimal, "F": Fraction}[kind](str(held))
