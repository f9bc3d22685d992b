"""Figures of the code's shape: how long functions and modules are, how many parameters, what is annotated.

    python scripts/code_figures.py [FOLDER]

Prints the figures of FOLDER (default: `rs_aligner`), and where the largest stand. A body is what follows the
docstring, counted in lines to the end of the function, those of functions within it included. `self` and
`cls` are no parameters. `tests/test_code_figures.py` holds the bounds. Left out on purpose: indices made of
several measures (maintainability and the like): such a number does not tell what to mend.
"""

from __future__ import annotations

import argparse
import ast
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Def = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A function as it is written.

    Attributes:
        place: path and line, relative to the folder that was read.
        name: with its classes, such as `Run.save`.
        lines: of the body, without the docstring.
        parameters: those that a caller gives.
        is_typed: whether the return is annotated.
    """

    place: str
    name: str
    lines: int
    parameters: int
    is_typed: bool


@dataclass(frozen=True)
class Figures:
    """What was read: every function, and each module's lines."""

    functions: list[Function]
    modules: dict[str, int]

    def percentile(self, share: float) -> int:
        """The body length that `share` of all functions do not exceed (nearest rank)."""
        lengths = sorted(function.lines for function in self.functions)
        return lengths[math.ceil(share * len(lengths)) - 1]

    @property
    def median(self) -> float:
        return statistics.median(function.lines for function in self.functions)

    @property
    def share_typed(self) -> float:
        return sum(function.is_typed for function in self.functions) / len(self.functions)

    def crowded(self, most: int) -> list[Function]:
        """Functions with more parameters than `most`, the worst first."""
        found = [function for function in self.functions if function.parameters > most]
        return sorted(found, key=lambda function: -function.parameters)


def read(folder: Path) -> Figures:
    """The figures of all Python files below a folder.

    Raises:
        ValueError: there are none.
    """
    functions: list[Function] = []
    modules: dict[str, int] = {}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(folder.parent))
        modules[name] = len(text.splitlines())
        functions += _functions(ast.parse(text), name)
    if not functions:
        raise ValueError(f"{folder} has no Python file with a function")
    return Figures(functions, modules)


def _functions(tree: ast.AST, path: str, within: str = "", in_class: bool = False) -> Iterator[Function]:
    """All functions below a node; `within` names what is around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Def):
            lines, parameters = _body_lines(node), _num_parameters(node, in_class)
            is_typed = node.returns is not None
            yield Function(f"{path}:{node.lineno}", within + node.name, lines, parameters, is_typed)
            yield from _functions(node, path, f"{within}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, path, f"{within}{node.name}.", in_class=True)
        else:  # an `if`, a `with`: still in the same class
            yield from _functions(node, path, within, in_class)


def _body_lines(node: Def) -> int:
    """Lines behind the docstring; a body on the line of the `def` has one."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    assert node.end_lineno is not None
    return node.end_lineno - body[0].lineno + 1 if body else 0


def _num_parameters(node: Def, in_class: bool) -> int:
    given = node.args
    number = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
    number += (given.vararg is not None) + (given.kwarg is not None)
    is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    return number - 1 if in_class and not is_static else number


def report(figures: Figures, most_parameters: int = 8) -> Iterator[str]:
    """The figures, a line each, and where the largest are."""
    longest = sorted(figures.modules.items(), key=lambda item: -item[1])
    bodies = sorted(figures.functions, key=lambda function: -function.lines)
    crowded = figures.crowded(most_parameters)
    yield f"functions: {len(figures.functions):,} in {len(figures.modules)} modules"
    yield f"median body: {figures.median:g} lines"
    yield f"95th percentile of bodies: {figures.percentile(0.95)} lines"
    yield f"longest body: {bodies[0].lines} lines, {bodies[0].name} ({bodies[0].place})"
    yield f"longest modules: {', '.join(f'{name} {lines}' for name, lines in longest[:5])}"
    yield f"more than {most_parameters} parameters: {len(crowded)}"
    yield from (f"    {one.parameters} {one.name} ({one.place})" for one in crowded)
    yield f"annotated returns: {figures.share_typed:.1%}"
    yield from (f"    none: {one.name} ({one.place})" for one in figures.functions if not one.is_typed)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "rs_aligner")
    print("\n".join(report(read(parser.parse_args(arguments).folder.resolve()))))


if __name__ == "__main__":
    main()
