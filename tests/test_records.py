"""What is held in the thousands is lean and cannot be changed by whoever holds it."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

FROZEN = {
    "answers/alone.py": ["Quantity"],
    "answers/choices.py": ["Options"],
    "answers/extract.py": ["Said"],
    "answers/forms.py": ["Form"],
    "answers/numbers.py": ["Number"],
    "answers/tokens.py": ["Token"],
    "answers/values.py": ["Value"],
    "generation/rows.py": ["RolloutRow"],
    "generation/sampling.py": ["Controls"],
    "policy/batches.py": ["MicroBatch"],
    "proof/watched.py": ["Validation"],
    "record/ledger_row.py": ["LedgerRow"],
    "reward/protocol.py": ["TextRow"],
    "rollout.py": ["PreferencePair", "Prompt", "Rollout", "Score", "ScoreFailure", "TrainingRow"],
    "schedule.py": ["RatePath"],
    "selection/base.py": ["Progress"],
    "selection/result.py": ["Selection"],
}
LEAN = {
    "remote/queue.py": ["Waiting"],
    "rollout.py": ["Group"],
    "trainers/collect.py": ["Collected"],
    "trainers/pool.py": ["Candidates"],
}


@pytest.mark.parametrize("module", FROZEN | LEAN)
def test_records_are_lean_and_stay_as_they_are(module: str) -> None:
    there = importlib.import_module("rs_aligner." + module.removesuffix(".py").replace("/", "."))
    for name in FROZEN.get(module, []) + LEAN.get(module, []):
        record = getattr(there, name)
        one = record.__new__(record)
        assert not hasattr(one, "__dict__"), name
        with pytest.raises(AttributeError):
            object.__setattr__(one, "mistyped", 1)
        if name in FROZEN.get(module, []):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(one, dataclasses.fields(record)[0].name, None)
