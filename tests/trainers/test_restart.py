"""A run that is killed anywhere and started again: the same end, and nothing that was scored is judged again.

In one process, with a policy that is a digest. A kill is an exception that nothing catches, at any of the
moments at which something happens: a rollout, an answer, a write, a sync, a rename. What a real SIGKILL does
is in `tests/crash/test_kills.py`.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.rollout import Prompt, Rollout, Score, ScoreFailure
from tests.fake_run import FakeRun, Killed, Result, by_tokens, digest, figures

STEPS = 5


class Clock:
    """Counts what happens, and kills at one of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.last = 0, -1
        for name in ("fsync", "replace", "write"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def tick(self) -> None:
        if isinstance(threading.current_thread(), threading.Timer):
            return
        self.now += 1
        if self.now == self.last:
            raise Killed

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **others: Any) -> Any:
            self.tick()
            return call(*arguments, **others)

        return counted


class Events(list[str]):
    """Events, each of which the clock counts."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def append(self, event: str) -> None:
        super().append(event)
        self.clock.tick()


def now_and_then(prompt: Prompt, rollout: Rollout) -> Result:
    """A score that is the same each time; now and then there is none."""
    if int(digest("fails", prompt.id, rollout.token_ids, rollout.index)[:4], 16) % 11 == 0:
        return ScoreFailure("no idea")
    return by_tokens(prompt, rollout)


def passes(prompt: Prompt, rollout: Rollout) -> Result:
    """A checker, and one prompt that nobody solves."""
    drawn = int(digest("passes", prompt.id, rollout.text)[:4], 16) % 3
    return Score(float(drawn == 0 and prompt.id != "p1"))


def watched_tokens(prompt: Prompt, rollout: Rollout) -> Result:
    total = sum(rollout.token_ids)
    return Score(float(total)) if total % 5 else ScoreFailure("no idea")


def two_judges(prompt: Prompt, rollout: Rollout) -> Result:
    """Two judges that see different things; now and then the second one says nothing."""
    first, second = (int(digest(name, rollout.token_ids)[:4], 16) / 1e4 for name in ("first", "second"))
    parts = {"first": first, "second": second}
    return Score(first + second, parts if sum(rollout.token_ids) % 7 else {"first": first})


DISTRUST = [{"name": "pessimistic", "components": ["first", "second"]}]
UNTIL = {"accepted": 2, "at_least": 1.0, "max_rollouts": 9}
DUPLICATES = [{"name": "duplicates", "against": "both"}, {"name": "topk"}]
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {"score": by_tokens, "save_interval": 3},
    "no checkpoint": {"score": by_tokens, "save_interval": 99},
    "pool": {"score": by_tokens, "pool": {"improve_steps": 2}, "save_interval": 3, "watched": watched_tokens},
    "pool until": {"score": passes, "pool": {"improve_steps": 2}, "until": UNTIL, "save_interval": 4},
    "bank until watched": {
        "score": passes,
        "pool": {"max_staleness": 2},
        "until": UNTIL,
        "watched": watched_tokens,
        "save_interval": 3,
        "epochs": 9,
    },
    "two replicas": {
        "score": by_tokens,
        "pool": {"max_staleness": 2},
        "watched": watched_tokens,
        "replicas": 2,
        "save_interval": 3,
        "epochs": 9,
    },
    "two replicas until": {"score": passes, "until": UNTIL, "replicas": 2, "save_interval": 2},
    "memory": {"score": by_tokens, "selection": DUPLICATES, "text_length": 1, "save_interval": 2},
    "two judges": {
        "score": two_judges,
        "selection": DISTRUST,
        "pool": {"max_staleness": 2},
        "watched": watched_tokens,
        "save_interval": 3,
        "epochs": 9,
    },
    "patience": {"score": by_tokens, "patience": 2, "save_interval": 2, "params": {"save_top_k": -1}},
}


class Killable:
    """A run that can be killed at any tick.

    Args:
        folder: of the run.
        how: its settings.
        clock: says when.
    """

    def __init__(self, folder: Path, how: dict[str, Any], clock: Clock) -> None:
        self.fake, self.clock = FakeRun(folder), clock
        self.how = {"steps": STEPS, "interval": 2, "top_n_rollouts": 2, "answers_by": 3, **how}

    def start(self, kill_at: int = -1) -> bool:
        """Run until this tick, or to the end; returns whether it came there."""
        self.fake.events, before = Events(self.clock), len(self.fake.judges)
        self.clock.now, self.clock.last = 0, kill_at
        try:
            self.fake.start(**self.how)
        except Killed:
            return False
        finally:
            self.clock.last = -1
        for judge in self.fake.judges[before:]:
            judge.in_flight = []
        return True

    def outcome(self) -> dict[str, Any]:
        """All that it has left, but for what the clock decides."""
        rollouts = self.fake.folder / "rollouts"
        return {
            "weights": (self.fake.folder / "final" / "weights").read_text(),
            "files": sorted(path.name for path in rollouts.iterdir()),
            "ledger": {path.name: path.read_bytes() for path in rollouts.glob("*.jsonl")},
            "metrics": figures(self.fake.rows),
        }

    def scored_twice(self) -> Counter[Any]:
        """What was scored more than once, by judge or watched judge, beyond what was in flight at a kill."""
        found: Counter[Any] = Counter()
        for judge in self.fake.judges:
            for shown, times in judge.scored.items():
                found[judge.score.__name__, *shown] += times
            for shown in judge.in_flight:
                found[judge.score.__name__, *shown] -= 1
        return Counter({shown: times for shown, times in found.items() if times > 1})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


FAST = ("plain", "pool until", "two replicas", "memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in SCENARIOS]
)
def test_a_run_that_is_killed_anywhere_ends_as_one_that_was_not(
    tmp_path: Path, clock: Clock, name: str
) -> None:
    """Killed twice, at ticks drawn from the whole run; `MANY_KILLS=40` draws more of them."""
    through = Killable(tmp_path / "through", SCENARIOS[name], clock)
    assert through.start()
    expected, ticks = through.outcome(), clock.now
    assert not through.scored_twice()
    draw = random.Random(name)
    for number in range(int(os.environ.get("MANY_KILLS", "5"))):
        run, tick = Killable(tmp_path / str(number), SCENARIOS[name], clock), draw.randrange(1, ticks)
        assert not run.start(kill_at=tick)
        run.start(kill_at=draw.randrange(1, ticks))
        run.start()
        assert run.outcome() == expected, f"killed at tick {tick} of {ticks}"
        assert not run.scored_twice(), f"killed at tick {tick} of {ticks}"
