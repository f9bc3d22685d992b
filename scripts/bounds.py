"""What `setup.py` asks for on Python 3.11, a line each, or with `oldest` the oldest of each as a constraint.

    python scripts/bounds.py
    python scripts/bounds.py oldest

Needs nothing that is not Python's own, since `scripts/test_bounds.sh` asks before there is an environment.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

SETUP = Path(__file__).parents[1] / "setup.py"


def given() -> dict[str, Any]:
    """The arguments of `setup`, which is not called."""
    found: dict[str, Any] = {}
    stand_in = SimpleNamespace(find_packages=lambda **_: [], setup=lambda **kwargs: found.update(kwargs))
    with patch.dict(sys.modules, {"setuptools": cast("Any", stand_in)}):
        runpy.run_path(str(SETUP))
    return found


def asked() -> dict[str, str]:
    """Name to bounds, as `>=2.7` or `>=0.16,<0.20`, of what needs no later Python."""
    found = {}
    for one in given()["install_requires"]:
        if ";" not in one:
            [(name, bounds)] = re.findall(r"^([\w-]+)(?:\[\w+\])?(.*)$", one)
            found[name] = bounds
    return found


def oldest() -> dict[str, str]:
    """Name to the lower bound.

    Raises:
        ValueError: one has none; it would be said to work with whatever was ever released.
    """
    found = {name: re.match(r">=([\d.]+)", bounds) for name, bounds in asked().items()}
    if without := [name for name, low in found.items() if low is None]:
        raise ValueError(f"setup.py has no lower bound of {', '.join(without)}")
    return {name: low[1] for name, low in found.items() if low is not None}


if __name__ == "__main__":
    if sys.argv[1:] == ["oldest"]:
        print("\n".join(f"{name}=={low}" for name, low in oldest().items()))
    else:
        print("\n".join(asked()))
