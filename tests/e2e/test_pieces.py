"""The pieces of recipes put together and run for real: killed, started again, and on two ranks.

Grow and improve with duplicates, a rising percentile, supervised rows, a KL term, a watched judge and
patience; sampling until enough are accepted; a bank; restarts; clipped ratios. The loop's own part in each is
held by `test_pool.py` with a policy that is a fake; here the weights are real, and so are their last bits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rs_aligner.config import TrainRSConfig, load_config, schedule_steps
from rs_aligner.record.ledger import Ledger
from rs_aligner.schedule import learning_rate
from tests.config.conftest import compose
from tests.e2e import pieces
from tests.e2e.launch import ROOT, read_metrics, run_script
from tests.fake_run import figures
from tests.ports import free_port
from tests.ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
ALONE = ("improve", "best", "until", "bank", "bank_again", "restart", "restart_again", "clip")
ON_TWO = ("improve", "until")
KILLED_IN = 5  # the second step of the second cycle; the checkpoint before it is of step 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs on one rank, made once."""
    folder = tmp_path_factory.mktemp("pieces")
    pieces.prepare(folder)
    _make(folder, 1, ALONE)
    return folder


@pytest.fixture(scope="module")
def on_two(folder: Path) -> Path:
    """Some of them on two data-parallel ranks."""
    _make(folder, 2, ON_TWO)
    return folder


def _make(folder: Path, ranks: int, cases: tuple[str, ...]) -> None:
    ports = {case: [str(free_port()) for _ in range(1 + (case in pieces.FIRST_START))] for case in cases}
    arguments = (":".join([case, *ports[case]]) for case in cases)
    results = folder / f"on_{ranks}"
    assert run_ranks("tests.e2e.pieces", ranks, results, str(folder), *arguments)


def weights(run: Path) -> dict[str, torch.Tensor]:
    shards = (run / "final").glob("*.safetensors")
    return {key: value for shard in shards for key, value in safetensors.torch.load_file(shard).items()}


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    assert ours
    for name, weight in ours.items():
        assert torch.equal(theirs[name], weight), name


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    for name, weight in ours.items():
        assert (theirs[name] - weight).norm() <= 1e-4 * weight.norm(), name


def ledger(run: Path) -> list[tuple[Any, ...]]:
    """What was sampled, scored and kept."""
    found = Ledger(run / "rollouts")
    keys = ("step", "policy_version", "group", "index", "prompt_id", "seed", "token_ids")
    keys += ("reward", "watched", "kept", "reason")
    return [tuple(getattr(row, key) for key in keys) for step in found.steps() for row in found.read(step)]


def figure(run: Path, key: str) -> dict[int, Any]:
    return {row["step"]: row[key] for row in read_metrics(run) if key in row}


# Grow and improve, with everything


def test_every_piece_plays_its_part(folder: Path) -> None:
    run = folder / "improve"
    grown = [step for step, tokens in figure(run, "tokens/generated").items() if tokens]
    assert grown == list(range(1, max(figure(run, "loss")) + 1, 3))
    kept = figure(run, "rollouts/kept")
    assert kept[1] >= kept[2] >= kept[3]
    assert kept[1] > kept[3]  # the bar rises
    assert all(value > 0 for step, value in figure(run, "kl").items() if step > 1)
    assert set(figure(run, "validation/watched")) == set(figure(run, "validation/reward"))
    last, best = max(figure(run, "step")), pieces.best_step(run)
    assert last == best + 2 * 3  # three checks, two steps apart, without a better figure
    assert last < 20


def test_final_is_the_best_policy_and_not_the_last(folder: Path) -> None:
    best = pieces.best_step(folder / "improve")
    assert max(figure(folder / "best", "step")) == best
    assert_same_bits(folder / "improve", folder / "best")


def test_a_run_that_is_killed_in_the_middle_of_a_cycle_ends_with_the_same_bits(folder: Path) -> None:
    run = folder / "killed"
    arguments = pieces.overrides(folder, "killed", "improve")
    written = run / "rollouts" / f"step_{KILLED_IN:06d}.jsonl"
    (folder / pieces.HOLD).write_text(str(written))  # the next validation does not end before it is killed
    with _started("train_rs.py", *arguments) as process:
        deadline = time.monotonic() + 120
        while not written.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait(timeout=20)
    (folder / pieces.HOLD).unlink()
    assert process.returncode == -signal.SIGKILL
    assert written.exists()
    assert not (run / "final").exists()
    assert max(figure(run, "step")) <= KILLED_IN
    again = run_script("train_rs.py", *arguments, timeout=150)
    assert again.returncode == 0, again.stdout
    assert f"continuing behind step {KILLED_IN - 1} " in again.stdout
    assert_same_bits(folder / "improve", run)
    assert ledger(run) == ledger(folder / "improve")
    assert figures(read_metrics(run)) == figures(read_metrics(folder / "improve"))


@contextlib.contextmanager
def _started(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # the judges' processes, if they are still there
            os.killpg(process.pid, signal.SIGKILL)


def test_two_ranks_train_on_the_same_rows_as_one(on_two: Path) -> None:
    assert ledger(on_two / "improve_on_2") == ledger(on_two / "improve")
    assert_same_weights(on_two / "improve", on_two / "improve_on_2")


# The other pools


def test_sampling_until_enough_are_accepted_is_the_same_on_two_ranks(on_two: Path) -> None:
    assert ledger(on_two / "until_on_2") == ledger(on_two / "until")
    assert_same_weights(on_two / "until", on_two / "until_on_2")
    found = Ledger(on_two / "until" / "rollouts")
    rows = [row for step in found.steps() for row in found.read(step)]
    sizes = [
        sum((row.step, row.group) == group for row in rows) for group in {(r.step, r.group) for r in rows}
    ]
    assert len(set(sizes)) > 1
    for step in found.steps():
        prompts = {row.group for row in rows if row.step == step}
        assert sum(row.step == step for row in rows) <= 4 * len(prompts)  # the budget that they share


def test_a_bank_and_a_run_that_restarts_are_continued_to_the_same_bits(folder: Path) -> None:
    for name in ("bank", "restart"):
        assert_same_bits(folder / name, folder / f"{name}_again")
        assert ledger(folder / f"{name}_again") == ledger(folder / name)
    ages = {step - 1 - version for step, version, *_ in ledger(folder / "bank")}
    assert ages == {0, 1, 2}


def test_each_cycle_of_a_run_that_restarts_begins_with_the_start_and_its_learning_rate(folder: Path) -> None:
    run = folder / "restart"
    config = load_config(compose("train_rs", pieces.overrides(folder, "restart", "restart")), TrainRSConfig)
    optim, whole, made = config.model.optim, schedule_steps(config, num_prompts=15), 0
    kept, rate = figure(run, "rollouts/kept"), figure(run, "lr")
    assert set(rate) == {1, 2, 3, 4, 5, 6}
    for step in sorted(rate):
        made = 0 if step in (1, 3, 5) else made  # cycles of two steps
        made += 2 * math.ceil(kept[step] / 4)  # passes of batches
        assert rate[step] == pytest.approx(learning_rate(made - 1, optim.sched, optim.lr, whole))
    # The log-likelihood of a cycle's first rows is that of the starting policy; so it does not add up.
    loss = figure(run, "loss")
    assert loss[3] > loss[2]
    assert loss[5] > loss[4]
    distance = figure(run, "kl/to_start")
    assert set(distance) == {1, 3, 5}
    assert distance[1] == pytest.approx(0, abs=1e-6)
    assert distance[3] > 0  # what samples is what was trained


def test_clipped_ratios_on_a_model_split_in_two_are_those_of_one_rank(folder: Path) -> None:
    done = run_script(
        "train_rs.py",
        *pieces.overrides(folder, "clip_tp2", "clip"),
        "trainer.devices=2",
        "model.tensor_model_parallel_size=2",
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    assert ledger(folder / "clip_tp2") == ledger(folder / "clip")
    assert_same_weights(folder / "clip", folder / "clip_tp2")
    rows = read_metrics(folder / "clip_tp2")
    assert any(row.get("clip_fraction", 0) > 0 for row in rows)
    assert [row["rollouts/kept"] for row in rows if "loss" in row] == [24, 24, 12]
    for one, other in zip(read_metrics(folder / "clip"), rows, strict=True):
        assert json.dumps(sorted(one)) == json.dumps(sorted(other))
