"""The run of mutants (`benchmarks/mutants.py`) names modules, tests and lines that are there."""

from __future__ import annotations

import importlib
import importlib.util
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("mutants")


def test_every_module_of_the_core_and_every_test_that_is_named_is_there(mutants: ModuleType) -> None:
    named = importlib.import_module("mutant_sample")
    core = named.modules()
    for pattern, tests in named.TESTS.items():
        assert any(fnmatch(module, pattern) for module in core), f"no module is called {pattern}"
        assert not [test for test in tests if not (ROOT / test).exists()], f"tests of {pattern}"


def test_an_equivalent_mutant_is_of_a_line_that_is_there_and_has_a_reason(mutants: ModuleType) -> None:
    for (module, before, after), why in mutants.equivalent().items():
        lines = [line.strip() for line in (mutants.PACKAGE / module).read_text().splitlines()]
        assert before in lines, f"{module} has no line {before!r}: take it out of equivalent_mutants.yaml"
        assert after != before
        assert len(why) > 10, f"{module}, {before!r}: say why"


def test_a_module_is_imported_from_the_mutants_source(mutants: ModuleType) -> None:
    module, name = "selection/topk.py", "rs_aligner.selection.topk"
    source = Path(mutants.PACKAGE / module).read_text()

    def kept(source: str) -> list[list[bool]]:
        spec = mutants._Finder(module, source).find_spec(name)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        mask: list[list[bool]] = made.select_topk(torch.tensor([[3.0, 1.0, 2.0]]), 1).tolist()
        return mask

    assert kept(source) == [[True, False, False]]
    assert kept(source.replace("descending=True", "descending=False")) == [[False, True, False]]
    assert mutants._Finder(module, source).find_spec("rs_aligner.selection.bars") is None
