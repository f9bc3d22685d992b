"""The power goes while a run writes: what was reported as saved is there, and the run ends as it would have.

`power.Disk` says what a start may find. What a run reports as saved: rows of metrics, selected steps, answers
to held-out prompts and checkpoints, when the call that writes them returns; scored rollouts a second later.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import rs_aligner
from rs_aligner.record import manifest
from rs_aligner.record.ledger import Ledger, held_out_name, step_name
from rs_aligner.record.metrics import MetricsFile, read_rows
from rs_aligner.record.run import Run
from tests.crash.power import Disk
from tests.tiny import save_tiny_with_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EACH = 1  # syncs between two moments at which the power goes
CONTINUED = 10  # of them, how many are gone on from to the end
CONFIG = {
    "trainer": {"accelerator": "cpu", "threads": 1},
    "trainer.rs": {"max_steps": 5, "max_epochs": 2, "save_interval": 2, "val_check_interval": 2},
    "model.rs": {"num_rollout_samples": 2, "num_rollouts_per_prompt": 4, "top_n_rollouts": 2},
    "model.rs.length_params.max_length": 6,
    "model.rs.pool.max_staleness": 1,
    "model.global_batch_size": 2,
    "model.optim": {"lr": 1e-2},
}
PROMPTS = [{"prompt": f"{number} is ", "id": number} for number in range(6)]
HELD_OUT = [{"prompt": "what is ", "id": "what"}, {"prompt": "who is ", "id": "who"}]


@dataclass
class Saved:
    """What a run has reported as saved."""

    checkpoint: int = -1
    rows: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def copy(self) -> Saved:
        return Saved(self.checkpoint, set(self.rows), set(self.files))


@dataclass
class Cut:
    """A moment at which the power goes: what a start finds, and what had been reported."""

    image: Path
    saved: Saved


def train(policy: Path, run: Path) -> Path:
    """A small run, or the rest of it."""
    result = rs_aligner.train(
        reward_fn=lambda prompts, responses, metadata: [float(len(set(text))) for text in responses],
        prompts=PROMPTS,
        eval_prompts=HELD_OUT,
        model_path=policy,
        output_dir=run,
        config=CONFIG,
    )
    return result.folder


def noting(patch: pytest.MonkeyPatch, saved: Saved) -> None:
    """Note what is reported: when a call that writes it has returned."""

    def behind(owner: type, name: str, note: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            found = real(*arguments, **keywords)
            note(*arguments[1:])
            return found

        patch.setattr(owner, name, call)

    behind(Run, "save", lambda policy, step, counters: setattr(saved, "checkpoint", step))
    behind(MetricsFile, "append", lambda row: saved.rows.add(int(row["step"])))
    behind(Ledger, "append", lambda step, *_: saved.files.add(step_name(step)))
    behind(Ledger, "append_held_out", lambda step, *_: saved.files.add(held_out_name(step)))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def cuts(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Cut]]]:
    """A whole run, and the moments at which its power might have gone."""
    folder, found, saved, rng = tmp_path_factory.mktemp("power"), list[Cut](), Saved(), random.Random(12)
    (folder / "root" / "run").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        noting(patch, saved)

        def cut() -> None:
            if disk.syncs % EACH == 0:
                image = disk.image(folder / f"image_{len(found):04d}", rng)
                found.append(Cut(image / "run", saved.copy()))

        with Disk(folder / "root", cut) as disk:
            train(policy, folder / "root" / "run")
    yield folder / "root" / "run", found
    shutil.rmtree(folder)


def test_what_was_reported_as_saved_is_on_the_disk(cuts: tuple[Path, list[Cut]]) -> None:
    whole, found = cuts
    assert len(found) > 60
    figures = {row["step"]: row for row in read_rows(whole / "metrics.jsonl")}
    for one in found:
        rows = {row["step"]: row for row in read_rows(one.image / "metrics.jsonl")} if one.saved.rows else {}
        assert {step: rows.get(step) for step in one.saved.rows} == {s: figures[s] for s in one.saved.rows}
        for name in one.saved.files:
            path = Path("rollouts") / f"{name}.jsonl"
            assert (one.image / path).read_bytes() == (whole / path).read_bytes()
        good = [
            int(path.name[5:])
            for path in (one.image / "checkpoints").glob("step_*")
            if path.name[5:].isdigit() and manifest.problem_with(path) is None
        ]
        assert max(good, default=-1) >= one.saved.checkpoint


def test_a_run_goes_on_from_what_is_there_to_the_same_end(cuts: tuple[Path, list[Cut]], policy: Path) -> None:
    whole, found = cuts
    wanted = figures(whole)
    names = sorted(path.relative_to(whole) for path in (whole / "rollouts").glob("*.jsonl"))
    for one in random.Random(3).sample(found, CONTINUED):
        shutil.rmtree(one.image / "owner", ignore_errors=True)  # whose machine is off
        run = train(policy, one.image)
        for name in (Path("final/model.safetensors"), *names):
            assert (run / name).read_bytes() == (whole / name).read_bytes(), (one, name)
        assert figures(run) == wanted


def figures(run: Path) -> list[dict[str, float]]:
    """A run's figures without times."""
    rows = read_rows(run / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
