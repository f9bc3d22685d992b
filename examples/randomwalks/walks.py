"""trlX's randomwalks task, written anew: a directed graph, walks in it, and how near one is to the shortest.

Nodes are letters, `a` is the goal, and nothing leads away from it. A walk is a text such as `kcfa`: a start
and up to nine more nodes along edges, over when it is at the goal. The policy learns walks at random first,
and has to find short ones by reward alone.

As in trlX: 21 nodes, each edge there with a probability of 0.1, walks of at most 10 nodes. Different: the
graph is drawn again until the goal can be reached from every node in time (in trlX the optimality of a node
from which it cannot is 0/0), and a walk that goes on behind the goal is not valid (in trlX what follows does
not count; a policy found that out in 20 steps, and wrote more and more of it).
"""

import random
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

NODES = "abcdefghijklmnopqrstu"
GOAL, MAX_LENGTH, EDGE_PROBABILITY = "a", 10, 0.1


@dataclass(frozen=True)
class Graph:
    """A graph.

    Attributes:
        edges: for each node, where one can go from there; from the goal nowhere.
        shortest: for each node, how many nodes the shortest walk from there has, both ends counted.
    """

    edges: dict[str, str]
    shortest: dict[str, int]

    def optimality(self, walk: str) -> float:
        """How good a walk is: 1 for the shortest from its start, 0 for one not valid or ending elsewhere.

        Between, (10 - n) / (10 - shortest) for a walk of n nodes.
        """
        is_valid = all(b in self.edges.get(a, "") for a, b in pairwise(walk))
        if not is_valid or not walk.endswith(GOAL) or not 1 < len(walk) <= MAX_LENGTH:
            return 0.0
        return (MAX_LENGTH - len(walk)) / (MAX_LENGTH - self.shortest[walk[0]])


def draw_graph(seed: int) -> Graph:
    """A graph in which every node has a way to the goal that is shorter than the longest walk."""
    rng = random.Random(seed)
    while True:
        edges = {a: "".join(b for b in NODES if a != b and rng.random() < EDGE_PROBABILITY) for a in NODES}
        edges[GOAL] = ""
        shortest = _to_the_goal(edges)
        if len(shortest) == len(NODES) and max(shortest.values()) < MAX_LENGTH:
            return Graph(edges, shortest)


def random_walks(graph: Graph, number: int, seed: int) -> list[str]:
    """Walks from random nodes along random edges, to the goal or to the greatest length."""
    rng = random.Random(seed)
    walks = []
    for _ in range(number):
        walk = rng.choice(NODES.replace(GOAL, ""))
        while len(walk) < MAX_LENGTH and not walk.endswith(GOAL):
            walk += rng.choice(graph.edges[walk[-1]])
        walks.append(walk)
    return walks


def _to_the_goal(edges: dict[str, str]) -> dict[str, int]:
    """Nodes of the shortest way from each node from which there is one: breadth first, backwards."""
    shortest, waiting = {GOAL: 1}, deque(GOAL)
    while waiting:
        here = waiting.popleft()
        for node in NODES:
            if here in edges[node] and node not in shortest:
                shortest[node] = shortest[here] + 1
                waiting.append(node)
    return shortest
