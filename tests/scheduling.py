"""Which test file runs next where several processes share them: the one that takes longest.

`--dist loadfile` takes the file with most tests first. Here the long files are those with few tests, so they
would come last, and one process would work for minutes while the others have nothing left. Files that look at
what the same ranks have found stay together, so that the ranks run once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    "tests/slurm/test_runs.py",
    "tests/slurm/test_rollouts.py",
    "tests/first_run/test_recipes.py",
    "tests/policy/test_layouts.py",
    "tests/first_run/test_readme.py",
    "tests/e2e/test_layouts.py",
    "tests/e2e/test_reward_model.py",
    "tests/test_quickstart.py",
    "tests/e2e/test_pieces.py",
    "tests/e2e/test_recipes.py",
    "tests/reward/server/test_server.py",
    "tests/reward/judges/test_megatron_judge.py",
    "tests/crash/test_kills.py",
    "tests/reward/server/test_megatron_service.py",
    "tests/slurm/test_scripts.py",
    "tests/e2e/test_generate.py",
    "tests/trainers/test_sft.py",
    "tests/trainers/test_preference.py",
    "tests/reward/client/test_faults.py",
    "tests/reward/server/test_service.py",
    "tests/e2e/test_judge_dies.py",
    "tests/crash/test_power.py",
    "tests/e2e/test_stories.py",
    "tests/reward/client/test_malformed_answers.py",
    "tests/crash/test_corruptions.py",
    "tests/reward/client/test_compatibility.py",
    "tests/test_api.py",
    "tests/test_learning_curves.py",
    "tests/test_benchmarks.py",
    "tests/test_arithmetic_task.py",
    "tests/test_learning_benchmark.py",
    "tests/e2e/test_in_process.py",
    "tests/e2e/test_generative_judge.py",
    "tests/e2e/test_randomwalks.py",
    "tests/reward/server/test_check.py",
)
"""Files of more than about 20 s, the longest first; the others follow by their number of tests."""
TOGETHER = {"tests/policy/test_objective_layouts.py": "tests/policy/test_layouts.py"}
"""Files that share a fixture of the session which takes minutes, with the file under whose name they go."""


class LongestFirst(LoadFileScheduling):
    """As `--dist loadfile`, in another order."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return TOGETHER.get(file, file)

    def _assign_work_unit(self, node: Any) -> None:
        waiting = next((file for file in LONGEST if file in self.workqueue), None)
        if waiting is not None:
            self.workqueue.move_to_end(waiting, last=False)
        super()._assign_work_unit(node)
