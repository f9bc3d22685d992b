"""Megatron without what it loads for nothing: what is decorated is compiled when it is called, not before."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rs_aligner.model import lean_megatron


def test_what_is_compiled_while_megatron_is_imported_is_compiled_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[tuple[str, dict[str, Any]]] = []

    def compile_now(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        compiled.append((function.__name__, how))
        return lambda *args: ("compiled", function(*args))

    monkeypatch.setattr(torch, "compile", compile_now)
    with lean_megatron._lean():

        @torch.compile
        def double(x: int) -> int:
            return 2 * x

        @torch.compile(dynamic=True)
        def triple(x: int) -> int:
            return 3 * x

    assert torch.compile is compile_now
    assert not compiled
    assert (double(2), double(3), triple(1)) == (("compiled", 4), ("compiled", 6), ("compiled", 3))
    assert compiled == [("double", {}), ("triple", {"dynamic": True})]
    assert double.__name__ == "double"


def test_what_was_hidden_can_be_imported_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with lean_megatron._lean(), pytest.raises(ImportError):
        importlib.import_module("wandb")
    assert "wandb" not in sys.modules
    assert importlib.util.find_spec("wandb") is not None
