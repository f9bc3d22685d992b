"""trlX's randomwalks task from Python, and what its score says of a walk (three seeds: benchmarks/)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.record.ledger import Ledger
from tests.e2e.launch import ROOT


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the graph and its walks."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "randomwalks"))
    import walks

    yield walks
    del sys.modules["walks"]


def test_a_walk_is_as_good_as_it_is_short(task: Any) -> None:
    graph = task.Graph({"a": "", "b": "a", "c": "b", "d": "bc"}, {"a": 1, "b": 2, "c": 3, "d": 3})
    assert graph.optimality("dba") == graph.optimality("ba") == 1.0
    assert graph.optimality("dcba") == 6 / 7
    for walk in ("da", "dc", "db", "dbab", "dbaa", "a", "", "dxa", "d ba"):
        assert graph.optimality(walk) == 0.0, walk


@pytest.mark.parametrize("seed", range(5))
def test_every_node_of_a_graph_has_a_way_that_is_found_to_be_the_shortest(task: Any, seed: int) -> None:
    graph = task.draw_graph(seed)
    assert len(graph.edges) == 21
    reached = {task.GOAL}
    for length in range(1, task.MAX_LENGTH):
        assert reached == {node for node, shortest in graph.shortest.items() if shortest <= length}
        reached |= {node for node, to in graph.edges.items() if set(to) & reached}
    walks = task.random_walks(graph, 300, seed)
    assert {walk[0] for walk in walks} == set(task.NODES) - {task.GOAL}
    assert max(map(len, walks)) == task.MAX_LENGTH
    assert all((graph.optimality(walk) > 0) == (walk.endswith("a") and len(walk) < 10) for walk in walks)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_policy_that_walks_at_random_learns_the_short_ways(task: Any, tmp_path: Path) -> None:
    import train

    _, result = train.run(tmp_path, seed=1, steps=10)
    before, after = (row["validation/reward"] for row in (result.metrics[0], result.metrics[-1]))
    print(f"optimality {before:.3f} -> {after:.3f}")
    assert before < 0.5
    assert after >= 0.85
    first = [row.reward for row in Ledger(result.folder / "rollouts").read(1) if row.kept]
    assert first
    assert min(first) > 0  # whoever finds no way at all teaches nothing
