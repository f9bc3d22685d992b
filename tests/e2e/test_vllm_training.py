"""A training whose rollouts come from real vLLM servers: one is killed, one is frozen, one has old weights.

The run is that of `test_stories.py`, on the same function with heads for vLLM. Its trainer computes the
log-probability of every token that it trains on; were one of another version, `mismatch/p99` would tell.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.launch import read_metrics
from tests.e2e.vllm_world import AGREES, SMALL, World, world_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def world(vllm_python: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_of(tmp_path_factory.mktemp("served"), vllm_python, test_data, [], []) as made:
        yield made


def test_two_steps_raise_the_score_while_servers_die_freeze_and_have_old_weights(world: World) -> None:
    run = world.train("faults")
    world.until(lambda: len(world.open_rows("faults", 1)) > 200, run, "faults")
    world.signal(1, signal.SIGKILL)
    world.until_said(f"{world.ports[1]} is left out", run, "faults")
    world.signal(0, signal.SIGSTOP)  # until past the deadline, however soon the other one is back
    try:
        world.servers[1] = world.serve(1)  # with the weights that it was started with at first
        world.until_said(f"{world.ports[1]} samples again", run, "faults")
        left_out = f"{world.ports[0]} is left out until it samples again: no answer within"
        world.until_said(left_out, run, "faults")
    finally:
        world.signal(0, signal.SIGCONT)
    world.until(lambda: len(world.open_rows("faults", 2)) > 100, run, "faults")
    old = world.folder / "faults" / "weights" / "step_000000"
    body = {"method": "reload_weights", "kwargs": {"weights_path": str(old)}}
    assert world.servers[1].ask("POST", "/collective_rpc", body).status == 200
    assert run.wait(300) == 0, world.log("faults")
    rows = read_metrics(world.folder / "faults")
    gain = rows[2]["validation/reward"] - rows[0]["validation/reward"]
    print(f"held-out score {rows[0]['validation/reward']:.3f} -> {rows[2]['validation/reward']:.3f}")
    assert gain >= 0.30
    for step in (1, 2):
        assert world.is_whole("faults", step, 128 * 8, {step - 1})
        assert rows[step]["mismatch/p99"] < AGREES
    assert "it has not the weights that it was sent any more" in world.log("faults")
    assert not (world.folder / "faults" / "weights").exists()


def test_a_run_that_is_killed_in_a_step_goes_on_with_what_was_scored(world: World) -> None:
    run = world.train("killed", *SMALL)
    world.until(lambda: len(world.open_rows("killed", 2)) > 60, run, "killed")
    run.kill()
    run.wait()
    there = [json.loads(line) for line in world.open_rows("killed", 2)]
    run = world.train("killed", *SMALL)
    assert run.wait(300) == 0, world.log("killed")
    assert f"step 000002: {len(there)} rollouts that were scored by an earlier start" in world.log("killed")
    rows = {(row["group"], row["index"]): row for row in world.rows("killed", 2)}
    for one in there:
        assert rows[one["group"], one["index"]]["token_ids"] == one["token_ids"]
    assert world.is_whole("killed", 2, 32 * 8, {1})
    assert read_metrics(world.folder / "killed")[-1]["mismatch/p99"] < AGREES


def test_servers_that_get_the_weights_every_other_step_sample_with_what_they_have(world: World) -> None:
    lags = ["model.rs.generation.sync_interval=2", "model.rs.generation.max_version_lag=1"]
    run = world.train("lags", *SMALL, *lags, "trainer.rs.max_steps=3")
    assert run.wait(300) == 0, world.log("lags")
    for step, version in ((1, 0), (2, 0), (3, 2)):
        assert world.is_whole("lags", step, 32 * 8, {version})
    rows = read_metrics(world.folder / "lags")
    assert [row["rejected/of_too_old_version"] for row in rows] == [0, 0, 0]
    assert ["mismatch/mean" in row for row in rows] == [True, False, True]
    assert [row["time/weights"] > 0.01 for row in rows] == [True, False, True]
