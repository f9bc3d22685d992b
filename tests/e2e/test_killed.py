"""A true run, killed with SIGKILL, ends as one that was not and asks nothing again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launch import ROOT, read_metrics
from tests.fake_run import figures
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]
BATCH = 2
JUDGE = """
import json, os, time
def judge(prompts, responses, metadata):
    time.sleep(0.02)
    with open(os.environ["JUDGED"], "a") as file:  # what is here was judged
        for prompt, response in zip(prompts, responses):
            file.write(json.dumps([prompt, response]) + "\\n")
    return [len(set(response)) + len(response) / 100 for response in responses]
"""


class KillableScript:
    """`train_rs.py` in a folder, as a user starts it; the same command each time."""

    def __init__(self, folder: Path, inputs: Path, *overrides: str) -> None:
        self.run, self.log, self.judged = folder / "run", folder / "log", folder / "judged"
        folder.mkdir()
        self.command = [
            *(sys.executable, str(ROOT / "examples" / "train_rs.py")),
            f"exp_manager.explicit_log_dir={self.run}",
            "exp_manager.create_tensorboard_logger=false",
            f"pretrained_checkpoint.restore_from_path={inputs / 'policy'}",
            f"model.data.data_prefix.train={inputs / 'prompts.jsonl'}",
            f"model.data.data_prefix.validation={inputs / 'held_out.jsonl'}",
            *("model.rs.num_rollout_samples=4", "model.rs.num_rollouts_per_prompt=4"),
            *("model.rs.top_n_rollouts=2", "model.rs.length_params.max_length=8"),
            *("model.global_batch_size=4", "trainer.rs.val_check_interval=2", "trainer.rs.save_interval=3"),
            *("trainer.rs.max_steps=5", "trainer.accelerator=cpu", "remote_rm.in_process=true"),
            *(f"remote_rm.judge.function={inputs / 'mine.py'}:judge", f"remote_rm.max_batch_size={BATCH}"),
            *overrides,
        ]

    def start(self, until: Callable[[Path], bool] = lambda run: False) -> int:
        """Start it, and kill it as soon as its folder looks like that; returns the status."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JUDGED": str(self.judged)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            try:
                while process.poll() is None and not until(self.run):
                    time.sleep(0.002)
            finally:
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)
            return process.wait(timeout=60)

    def times_judged(self) -> Counter[str]:
        """How often each answer was judged, over all starts; each tries its judge on prompts of its own."""
        lines = self.judged.read_text().splitlines()
        return Counter(line for line in lines if json.loads(line)[0].isdigit())

    def outcome(self) -> dict[str, Any]:
        """What it has left, but for times."""
        rollouts = self.run / "rollouts"
        return {
            "weights": [path.read_bytes() for path in sorted(self.run.glob("final/*.safetensors"))],
            "names": sorted(path.name for path in rollouts.iterdir()),
            "ledger": {path.name: path.read_bytes() for path in rollouts.iterdir()},
            "metrics": figures(read_metrics(self.run)),
        }


def has_rows(name: str, number: int) -> Callable[[Path], bool]:
    """Whether so many rollouts of an open step are there."""

    def look(run: Path) -> bool:
        files = list((run / "rollouts" / f"{name}.open").glob("*.jsonl"))
        try:
            return sum(path.read_bytes().count(b"\n") for path in files) >= number
        except FileNotFoundError:
            return False

    return look


def test_a_run_killed_in_mid_sampling_and_behind_its_checkpoint_ends_as_one_that_was_not(
    tmp_path: Path,
) -> None:
    save_tiny_with_tokenizer(tmp_path / "policy")
    for name, first, number in (("prompts", 0, 20), ("held_out", 100, 4)):
        rows = [{"text": f"{first + row}", "id": f"{name}{row}"} for row in range(number)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(JUDGE)
    through = KillableScript(tmp_path / "through", tmp_path)
    assert through.start() == 0, through.log.read_text()
    killed = KillableScript(tmp_path / "killed", tmp_path)
    points = [has_rows("step_000002", 6), has_rows("step_000005", 4)]  # checkpoints are behind 3 and 5
    for point in points:
        assert killed.start(point) == -signal.SIGKILL, killed.log.read_text()
    assert killed.start() == 0, killed.log.read_text()
    assert killed.outcome() == through.outcome()
    again = killed.times_judged() - through.times_judged()
    assert again.total() <= len(points) * BATCH, again  # in flight
    assert not through.times_judged() - killed.times_judged()
    said = killed.log.read_text()
    assert "step 000002: " in said
    assert "scored by an earlier start are taken back" in said
    assert "step 4 is trained again from the ledger" in said
    assert list(killed.run.glob("**/*.tmp")) == list(killed.run.glob("**/.seen*")) == []
