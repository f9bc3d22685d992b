"""The code of tests, read: the names that it wants of the program, its test functions, its imports."""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator

from rs_aligner.sandbox.program import MODULE


def prepared(text: str) -> ast.Module:
    """A test's code without its imports of the program, whose names are found otherwise."""
    tree = ast.parse(text)
    tree.body = [part for part in tree.body if not _is_of_solution(part)]
    return tree


def from_solution(text: str) -> Iterator[str]:
    """Names that a test's code imports from the program."""
    for part in ast.parse(text).body:
        if _is_of_solution(part) and isinstance(part, ast.ImportFrom):
            yield from (alias.name for alias in part.names if alias.name != "*")


def _is_of_solution(part: ast.stmt) -> bool:
    return isinstance(part, ast.ImportFrom) and part.module == MODULE


def test_functions(tree: ast.Module) -> Iterator[str]:
    """Its functions that are tests, named so and without arguments, and such methods as `Class.method`."""
    for part in tree.body:
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_") and not part.args.args:
            yield part.name
        if isinstance(part, ast.ClassDef) and any(
            ast.unparse(base).endswith("TestCase") for base in part.bases
        ):
            methods = [method.name for method in part.body if isinstance(method, ast.FunctionDef)]
            yield from (f"{part.name}.{method}" for method in methods if method.startswith("test"))


def free_names(codes: list[str]) -> set[str]:
    """Names that these codes, one behind the other, use and neither Python nor they themselves have."""
    bound: set[str] = set()
    used: set[str] = set()
    for code in codes:
        table = symtable.symtable(code, "tests", "exec")
        bound |= {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        used |= set(_globals_of(table))
    return used - bound - set(dir(builtins)) - {"__name__", "__file__"}


def _globals_of(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (table.get_type() == "module" or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals_of(child)


def called(tree: ast.Module) -> Iterator[str]:
    """Names that it calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
