"""Megatron is imported without what this project never uses of it, which is two thirds of its import.

`torch.compile` decorates some of its functions while it is imported, for which torch loads Dynamo and
Inductor; here a decorated function is compiled when it is first called, and none of them is. Of Weights &
Biases and TensorBoard it takes names, where they are there, for figures that nobody asks it for. Nothing else
of the process is touched, and nothing once Megatron is imported. Left out on purpose: what else it imports,
which optimizer and checkpoints need.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MEGATRON = "megatron.core"
NOT_NEEDED = ("wandb", "torch.utils.tensorboard")


class _Finder(MetaPathFinder):
    """Finds Megatron as anybody else would, once, and has it imported by `_Lean`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MEGATRON:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Lean(spec.loader)
        return spec


class _Lean(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # what tools ask of a loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _lean():
            self._loader.exec_module(module)


def install() -> None:
    """See to it that Megatron is imported so, if it has not been imported yet. Safe to call again."""
    if MEGATRON not in sys.modules and not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def build_optimizers_plainly() -> None:
    """Torch loads Dynamo when an optimizer is made, so that no compiler looks into that. None would.

    What is set is torch's own note of which function to call instead (`torch/_compile.py`): without Dynamo in
    the process it is the function itself.
    """
    import torch

    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        function = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if function is not None:
            function.__dynamo_disable = function


@contextmanager
def _lean() -> Iterator[None]:
    import torch

    compile_now, hidden = torch.compile, [name for name in NOT_NEEDED if name not in sys.modules]
    torch.compile = functools.partial(_compile_when_called, compile_now)
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # an ImportError for whoever imports it
    try:
        yield
    finally:
        torch.compile = compile_now
        for name in hidden:
            del sys.modules[name]


def _compile_when_called(
    compile_now: Callable[..., Any], function: Callable[..., Any] | None = None, **how: Any
) -> Any:
    """What `torch.compile` returns, but compiled by the first call."""
    if function is None:
        return functools.partial(_compile_when_called, compile_now, **how)
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            compiled.append(compile_now(function, **how))
        return compiled[0](*args, **kwargs)

    return call
