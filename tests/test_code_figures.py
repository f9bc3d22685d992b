"""The code keeps its shape: short functions, short modules, few parameters, every return annotated."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT


def load_script() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("code_figures", ROOT / "scripts" / "code_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["code_figures"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


code_figures = load_script()


@pytest.fixture(scope="module")
def ours() -> Any:
    """The figures of the package."""
    return code_figures.read(ROOT / "rs_aligner")


SAMPLE = '''
def none(): ...

def three(a, /, b, *c, d=1, **e) -> int:
    """A docstring
    of two lines.
    """
    # a comment of the body
    x = a

    def inner(y) -> int:
        return y

    return inner(x)

class Box:
    def method(self, a) -> None:
        pass

    @staticmethod
    def static(a, b) -> None:
        """Nothing but a docstring."""

    if True:
        @classmethod
        def made(cls) -> "Box": return cls()
'''


def test_half_of_the_functions_have_at_most_8_lines_and_19_of_20_at_most_30(ours):
    assert ours.median <= 8
    assert ours.percentile(0.95) <= 30


def test_no_module_is_longer_than_320_lines(ours):
    assert {name: lines for name, lines in ours.modules.items() if lines > 320} == {}


def test_no_function_takes_more_than_8_arguments(ours):
    assert [f"{one.place} {one.name}" for one in ours.crowded(8)] == []


def test_every_return_is_annotated(ours):
    assert [f"{one.place} {one.name}" for one in ours.functions if not one.is_typed] == []


def test_what_is_counted_is_what_the_script_says(tmp_path: Path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "sample.py").write_text(SAMPLE)
    found = code_figures.read(tmp_path / "package")
    assert [(one.name, one.lines, one.parameters, one.is_typed) for one in found.functions] == [
        ("none", 1, 0, False),
        ("three", 6, 5, True),
        ("three.inner", 1, 1, True),
        ("Box.method", 1, 1, True),
        ("Box.static", 0, 2, True),
        ("Box.made", 1, 0, True),
    ]
    assert found.modules == {"package/sample.py": len(SAMPLE.splitlines())}
    assert (found.median, found.percentile(0.95), found.percentile(0.5)) == (1, 6, 1)
    assert [one.name for one in found.crowded(1)] == ["three", "Box.static"]
    assert "    none: none (package/sample.py:2)" in list(code_figures.report(found))


def test_a_folder_without_code_is_said_to_have_none(tmp_path: Path):
    with pytest.raises(ValueError, match="no Python file"):
        code_figures.read(tmp_path)
