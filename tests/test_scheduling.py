"""The order of the test files names files that are there, and shares each of them out once."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest

from tests.scheduling import LONGEST, ROOT, TOGETHER, LongestFirst


def test_every_file_of_the_order_is_there_and_stands_there_once() -> None:
    named = [*LONGEST, *TOGETHER]
    assert len(set(named)) == len(named)
    assert [file for file in (*named, *TOGETHER.values()) if not (ROOT / file).is_file()] == []


def test_the_longest_goes_first_and_files_of_the_same_ranks_stay_together(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (together, whole), last = next(iter(TOGETHER.items())), LONGEST[-1]
    files = ("tests/a.py", "tests/b.py", "tests/b.py", together, last, whole)
    nodeids = [f"{file}::test_{number}" for number, file in enumerate(files)]
    sent: dict[str, list[str]] = {"one": [], "two": []}

    class Node:
        shutting_down = False

        def __init__(self, name: str) -> None:
            self.name = name
            self.gateway = SimpleNamespace(id=name)

        def send_runtest_some(self, indices: list[int]) -> None:
            sent[self.name] += [nodeids[index] for index in indices]

        def shutdown(self) -> None: ...

    config: Any = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=True), getvalue=lambda _: ["2*popen"], hook=None
    )
    scheduler = LongestFirst(config)
    nodes: list[Any] = [Node(name) for name in sent]
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, nodeids)
    scheduler.schedule()
    assert isinstance(scheduler.workqueue, OrderedDict)
    assert [where.split("::")[0] for where in sent["one"][:2]] == [together, whole]
    assert sent["two"][0].startswith(last)
    while not scheduler.tests_finished:
        for node in nodes:
            for nodeid in sent[node.name]:
                scheduler.mark_test_complete(node, nodeids.index(nodeid))
    assert sorted(sent["one"] + sent["two"]) == sorted(nodeids)
