"""Rollouts of a step, with texts that would do something where they were taken for more than text."""

from __future__ import annotations

from rs_aligner.record.sinks import Sampled
from rs_aligner.rollout import Group
from tests.report.made_up import group, keeping

SECRET = "what-nobody-else-should-read"
EVIL = f"{SECRET} | ![x](http://example.invalid/x.png) <script>alert(1)</script> **b** \x1b[2J\u202e\n"


def groups(text: str = EVIL) -> list[Group]:
    return [
        group(0, [0.0, 1.0, "the judge was out"], text=text),
        group(1, [0.25, 0.5, 0.75], lengths=[1, 5, 3], text=text),
    ]


def of_step(text: str = EVIL) -> Sampled:
    """The second of the first prompt's and the third of the second's are kept; one was sampled later."""
    found = groups(text)
    return Sampled(found, keeping(found, [[1], [2]]), by_design=[[0, 1, 2], [0, 1]])


def of_look(text: str = EVIL) -> Sampled:
    return Sampled(groups(text))
