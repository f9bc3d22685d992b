"""Users' own code, found by its name: a judge, a selector.

A name is `path/to/file.py:name` or `package.module:name`. What is wrong with it is told in one error that
names the config key. Left out on purpose: what the code is called with, which those know who call it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def find(key: str, spec: str) -> Callable[..., Any]:
    """Import a user's function or class.

    Args:
        key: the config key that names it, for errors.
        spec: `path/to/file.py:name` or `package.module:name`.

    Raises:
        ValueError: no such file, module or name, code that fails when it is imported, or what cannot be
            called.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise ValueError(f"{key}: {spec!r} must look like path/to/file.py:name or package.module:name")
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError as error:
        raise ValueError(f"{key}: {error}") from None
    except Exception as error:
        hint = "" if source.endswith(".py") else " (is its folder on PYTHONPATH?)"
        raise ValueError(f"{key}: importing {source} failed{hint}: {describe(error)}") from error
    found: Callable[..., Any] | None = getattr(module, name, None)
    if found is None:
        raise ValueError(f"{key}: {source} has no {name!r}")
    if not callable(found):
        raise ValueError(f"{key}: {spec} is a {type(found).__name__}, not a function")
    return found


def describe(error: BaseException) -> str:
    """An exception on one line, for logs and answers."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _import_file(path: Path) -> Any:
    """Import a file as Python runs a script: its own folder is searched for what it imports."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"rs_aligner_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up by name
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module
