"""No circle of imports: not between modules, nor between rooms, those for types and in functions included.

import-linter (pyproject.toml) holds the order of the rooms; this holds that there is one at every depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import grimp
import pytest

PACKAGE = "rs_aligner"
Imports = Mapping[str, set[str]]


def modules(graph: grimp.ImportGraph) -> Imports:
    """What each module imports. A package's `__init__` is a module like any other."""
    return {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}


def rooms(imports: Imports, package: str) -> Imports:
    """What the rooms and modules right below a package import of one another, with all that is in them."""
    below = f"{package}."

    def room_of(name: str) -> str | None:
        return below + name[len(below) :].split(".", maxsplit=1)[0] if name.startswith(below) else None

    found: dict[str, set[str]] = {}
    for name, imported in imports.items():
        if room := room_of(name):
            others = {other for one in imported if (other := room_of(one)) is not None}
            found.setdefault(room, set()).update(others - {room})
    return found


def circle(imports: Imports) -> list[str]:
    """Names that import each other in a circle, the first one again at the end; empty if there is none."""
    done: set[str] = set()
    for start in sorted(imports):
        path = [start]
        ways: list[Iterator[str]] = [iter(sorted(imports[start]))]
        while ways and start not in done:
            step = next(ways[-1], None)
            if step is None:
                ways.pop()
                done.add(path.pop())
            elif step in path:
                return [*path[path.index(step) :], step]
            elif step not in done:
                path.append(step)
                ways.append(iter(sorted(imports.get(step, ()))))
    return []


@pytest.fixture(scope="module")
def graph() -> Imports:
    """Of the whole package."""
    return modules(grimp.build_graph(PACKAGE, cache_dir=None))


def test_no_modules_import_each_other_in_a_circle(graph: Imports) -> None:
    assert len(graph) > 150
    assert " -> ".join(circle(graph)) == ""


def test_no_rooms_import_each_other_in_a_circle(graph: Imports) -> None:
    packages = sorted({name.rpartition(".")[0] for name in graph} - {""})
    assert f"{PACKAGE}.reward" in packages
    found = [circle(rooms(graph, package)) for package in packages]
    assert [" -> ".join(names) for names in found if names] == []


def test_imports_for_types_and_in_functions_are_seen(graph: Imports) -> None:
    lazy = "rs_aligner.commands.serve_reward", "rs_aligner.reward.server.serve"
    for_types = "rs_aligner.commands.train_sft", "rs_aligner.record.run"
    assert all(imported in graph[module] for module, imported in (lazy, for_types))


def test_a_circle_is_found_and_named() -> None:
    imports = {
        "p.a": {"p.b.x"},
        "p.b.x": {"p.c"},
        "p.b.y": {"p.a", "q"},
        "p.c": {"p.b.y"},
        "p.d": {"p.a"},
    }
    assert circle(imports) == ["p.a", "p.b.x", "p.c", "p.b.y", "p.a"]
    assert circle(rooms(imports, "p")) == ["p.a", "p.b", "p.a"]
    without = {**imports, "p.c": set()}
    assert circle(without) == []
    assert circle(rooms(without, "p")) == ["p.a", "p.b", "p.a"]
