"""Rewards that were single-precision numbers on their way, and bars that were not.

A judge's 0.7 that travels as float32 arrives as 0.699999988079071. It is below the 0.7 of a config, although
both mean the same number; so what came in a narrower type is compared with a bar in that type. The reward
itself stays what arrived. Left out on purpose: bars that are computed from rewards (quantiles, medians),
which are of their kind anyway.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal["float16", "float32", "float64"]
PRECISIONS: tuple[Precision, ...] = ("float16", "float32", "float64")

# Decimal digits that survive in each: FLT_DIG and its like.
_DIGITS: dict[str, int] = {"float16": 3, "float32": 6}


def rounded(value: float, precision: Precision) -> float:
    """The number of that type which is nearest to a value; infinite where the value is too large for it."""
    if precision == "float64":
        return value
    import numpy as np  # not by the config, which needs the names only

    with np.errstate(over="ignore"):
        return float(np.float16(value) if precision == "float16" else np.float32(value))


def as_meant(value: float, precision: str) -> float:
    """The number that somebody meant who wrote it down in a narrower type.

    Where one of as few digits as the type keeps (six of a float32) is rounded to `value`, it is that one:
    numpy's float32 of 0.7 is 0.7 again. Any other value stays what it is. Order and ties do not change.

    Args:
        value: a number of that type, as a double.
        precision: `float16`, `float32`; any other leaves the value as it is.
    """
    digits = _DIGITS.get(precision)
    if digits is None:
        return value
    short = float(f"{value:.{digits}g}")
    return short if rounded(short, "float16" if precision == "float16" else "float32") == value else value
