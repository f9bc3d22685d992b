"""One small run with all that a run can have, a judge that notes what it was asked, and what must hold.

The run that nobody kills comes first; it says what each other must end with. `Scene.check` compares a run
that has come to its end: the weights, the ledger and the metrics (but for times) to the bit, the rows that
were judged, and what lies in the run's folder.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.crash.points import Point
from tests.crash.victims import Victims, victims
from tests.ports import free_port
from tests.reward.service import service
from tests.tiny import save_tiny_with_tokenizer

Judged = Counter[tuple[str, str]]  # prompt and response

JUDGE = """
import json, os

def judge(prompts, responses, metadata):
    lines = [json.dumps([prompt, response]) for prompt, response in zip(prompts, responses)]
    log = os.open("judged.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, "".join(line + "\\n" for line in lines).encode())
    os.close(log)
    return [float(len(set(response))) - 0.01 * len(response) for response in responses]
"""

COMMON = {
    "exp_manager.create_tensorboard_logger": "false",
    "model.rs.num_rollout_samples": 4,
    "model.rs.num_rollouts_per_prompt": 6,
    "model.rs.top_n_rollouts": 2,
    "model.rs.num_val_rollouts_per_prompt": 2,
    "model.rs.length_params.max_length": 12,
    "model.global_batch_size": 4,
    "model.micro_batch_size": 2,
    "model.optim.lr": "1e-2",
    "trainer.accelerator": "cpu",
    "trainer.threads": 1,
    "trainer.rs.max_steps": 6,
    "trainer.rs.val_check_interval": 3,
    "trainer.rs.save_interval": 4,
}
KINDS = {
    "pool": {"model.rs.pool.improve_steps": 2},  # a step's rollouts are trained on twice
    "bank": {"model.rs.pool.max_staleness": 2, "model.rs.objective.kl": 0.1},
}
LEFT_BEHIND = re.compile(r"\.(open|partial|tmp|broken\w*)$")


@dataclass
class Ended:
    """What a run that nobody killed has left."""

    weights: bytes
    ledger: dict[str, bytes]
    metrics: list[dict[str, Any]]
    judged: Judged
    checkpoints: list[str] = field(default_factory=list)


class Scene:
    """A judge, and runs of one kind, each in a folder of its own.

    Args:
        folder: for everything.
        runs: starts them.
        judged: where the judge writes down what it was asked.
    """

    def __init__(self, folder: Path, runs: Victims, judged: Path) -> None:
        self.folder, self.runs, self.log = folder, runs, judged
        before = self.asked  # the server has tried its judge
        assert self.attempt(folder / "whole") == 0, self.said(folder / "whole")
        self.whole = self.ended(folder / "whole", self.judged(before))

    def judged(self, since: int) -> Judged:
        """What the judge was asked behind so many bytes of its log, but for the clients' trial of it.

        The trials of two ranks have one id, so that the server answers two at a time with one judgement.
        """
        lines = self.log.read_bytes()[since:].splitlines() if self.log.exists() else []
        judged = Counter(tuple(json.loads(line)) for line in lines)
        del judged["", ""]
        return judged

    @property
    def asked(self) -> int:
        """How long the judge's log is."""
        return self.log.stat().st_size if self.log.exists() else 0

    def attempt(self, run: Path, *more: str, point: Point | None = None) -> int:
        """Start a run, or start it again, and wait for it; returns its exit status."""
        return self.runs.run(
            run.with_suffix(".log"), f"exp_manager.explicit_log_dir={run}", *more, point=point
        )

    def start(self, run: Path) -> int:
        """Start a run and go on; returns its process id."""
        return self.runs.start(run.with_suffix(".log"), f"exp_manager.explicit_log_dir={run}")

    def gone(self, pid: int, seconds: float = 30.0) -> None:
        """See that nothing is left of a run that has ended, its ranks and their children included.

        Raises:
            AssertionError: something is, after so many seconds.
        """
        deadline = time.monotonic() + seconds
        while left := [one for one in psutil.process_iter() if _session(one) == pid]:
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)

    def seconds(self, run: Path) -> float:
        """How long a run takes that nobody kills."""
        began = time.monotonic()
        self.goes_on(run)
        return time.monotonic() - began

    def said(self, run: Path) -> str:
        """The end of what a run has printed."""
        return run.with_suffix(".log").read_text()[-4000:]

    def ended(self, run: Path, judged: Judged) -> Ended:
        """What a run has left."""
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return Ended(
            weights=b"".join(path.read_bytes() for path in sorted((run / "final").glob("*.safetensors"))),
            ledger={path.name: path.read_bytes() for path in sorted((run / "rollouts").glob("*"))},
            metrics=[{k: v for k, v in row.items() if not k.startswith("time/")} for row in metrics],
            judged=judged,
            checkpoints=sorted(path.name for path in (run / "checkpoints").iterdir()),
        )

    def kept(self, run: Path) -> Judged:
        """The scored rollouts that a run's folder has: whole lines of the ledger, each rollout once."""
        found: dict[tuple[Any, ...], tuple[str, str]] = {}
        for path in sorted((run / "rollouts").glob("**/*.jsonl")) if run.exists() else ():
            name = path.relative_to(run / "rollouts").parts[0].split(".")[0]
            for line in path.read_bytes().split(b"\n")[:-1]:
                row = json.loads(line)
                if row["reward"] is not None:
                    sampled = name if name.startswith("held_out") else "step"
                    key = sampled, row["prompt_id"], row["seed"], row["policy_version"]
                    found[key] = row["prompt"], row["response"]
        return Counter(found.values())

    def goes_on(self, run: Path, *more: str) -> None:
        """Start a run again, to its end; see that it asks for nothing that it has, and ends right."""
        had, before = self.kept(run), self.asked
        status = self.attempt(run, *more)
        assert status == 0, f"exit status {status}:\n{self.said(run)}"
        missing = self.whole.judged - had
        again = self.judged(before)
        assert not (twice := again - missing), f"judged twice: {twice}"
        assert not (never := missing - again), f"never judged: {never}"
        self.check(run)

    def check(self, run: Path) -> None:
        """See that a run has ended as the one that nobody killed, and that nothing else lies there."""
        ended = self.check_bits(run)
        assert ended.checkpoints == self.whole.checkpoints, ended.checkpoints
        left = [path for path in run.rglob("*") if LEFT_BEHIND.search(path.name)]
        assert not left, f"left behind: {left}"

    def check_bits(self, run: Path, *but: str) -> Ended:
        """See that a run has the weights, ledger and metrics of the one that nobody killed, to the bit.

        What was set aside (`.broken`) may lie beside them.

        Args:
            run: its folder.
            but: files of the ledger that are not looked at.
        """
        ended = self.ended(run, Counter())
        assert ended.weights == self.whole.weights, "the weights differ"
        names = {name for name in ended.ledger if not LEFT_BEHIND.search(name)} | {*but}
        assert names == self.whole.ledger.keys() | {*but}, f"the ledger has {names}"
        for name in self.whole.ledger.keys() - {*but}:
            assert ended.ledger[name] == self.whole.ledger[name], f"{name} differs"
        assert ended.metrics == self.whole.metrics, "the metrics differ"
        return ended


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


@contextmanager
def scene(folder: Path, kind: str, *more: str) -> Iterator[Scene]:
    """A scene of a kind, with its judge; all of it is ended, whatever happens."""
    save_tiny_with_tokenizer(folder / "policy")
    for name, number in (("train", 16), ("validation", 3)):
        rows = ({"text": f"{name} {i} ", "id": f"{name}{i}"} for i in range(number))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    port = free_port()
    (folder / "judges.py").write_text(JUDGE)
    settings = {
        "pretrained_checkpoint.restore_from_path": folder / "policy",
        "model.data.data_prefix.train": folder / "train.jsonl",
        "model.data.data_prefix.validation": folder / "validation.jsonl",
        "remote_rm.reward_model.port": port,
        **COMMON,
        **KINDS[kind],
    }
    arguments = [f"{key}={value}" for key, value in settings.items()]
    with (
        service(folder, port, "judge.function=judges.py:judge") as judge,
        victims([*arguments, *more]) as runs,
    ):
        judge.wait_until_ready()
        yield Scene(folder, runs, folder / "judged.jsonl")
