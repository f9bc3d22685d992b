"""Trainings of adapters with a real vLLM that was started for them.

The tests share the server in this order: first it has the weights that it was started with, then others.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.vllm_world import AGREES, SMALL, World, world_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOKEN = "a-secret-of-this-test"
RANK = "model.peft.lora_tuning.adapter_dim"
LORA = ["model.peft.peft_scheme=lora", f"{RANK}=8", "model.optim.lr=1e-2"]


@pytest.fixture(scope="module")
def world(vllm_python: Path, test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("adapted")
    with world_of(folder, vllm_python, test_data, ["lora_rank=10"], token=TOKEN) as made:
        yield made


def adapters(world: World) -> list[str]:
    """The folders of the adapters that the server has."""
    found = json.loads(world.servers[0].ask("GET", "/v1/models", token=TOKEN).body)["data"]
    return [Path(one["root"]).name for one in found if one["parent"] is not None]


def test_adapters_alone_raise_the_score_though_the_server_and_the_run_are_killed(world: World) -> None:
    """Four steps: in the second the server is started again, in the third the run."""
    name, weights = "adapted", world.folder / "adapted" / "weights"
    settings = [*LORA, *SMALL, "trainer.rs.max_steps=4", "trainer.rs.val_check_interval=4"]
    settings += ["model.rs.num_val_rollouts_per_prompt=1"]
    run = world.train(name, *settings)
    world.until(lambda: len(world.open_rows(name, 2)) > 20, run, name)
    world.signal(0, signal.SIGKILL)
    world.until_said("is left out until it samples again", run, name)
    world.servers[0] = world.serve(0)
    world.until(lambda: len(world.open_rows(name, 3)) > 60, run, name)
    run.kill()
    run.wait()
    assert adapters(world) == ["step_000002"]
    there = sorted(path.name for path in weights.iterdir())
    assert there == ["step_000001", "step_000002"]
    for version in there:
        names = {path.name for path in (weights / version).iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "rs_aligner_marker"} <= names
        assert not {one for one in names if one.startswith("model")}
    rows = world.trained(name, *settings)
    said = world.log(name)
    assert said.count("travel to the servers adapters alone") == 2
    assert "rollouts that were scored by an earlier start" in said
    print(f"held-out score {rows[0]['validation/reward']:.3f} -> {rows[-1]['validation/reward']:.3f}")
    assert rows[-1]["validation/reward"] - rows[0]["validation/reward"] >= 0.30
    for step in range(1, 5):
        assert world.is_whole(name, step, 32 * 8, {step - 1})
        assert rows[step]["mismatch/p99"] < AGREES
    assert adapters(world) == ["step_000004"]
    assert not weights.exists()


@pytest.mark.parametrize(("name", "rank"), [("too large for the server", 32), ("of another base", 8)])
def test_whole_weights_travel_where_adapters_may_not_go_beside_the_servers(
    world: World, name: str, rank: int
) -> None:
    """The first of these gives the server other weights, beside which no adapter belongs."""
    few = [*LORA, *SMALL, "model.rs.num_rollout_samples=16", "model.rs.num_rollouts_per_prompt=4"]
    rows = world.trained(name, *few, f"{RANK}={rank}")
    assert "travel to the servers whole" in world.log(name)
    for step in (1, 2):
        assert world.is_whole(name, step, 16 * 4, {step - 1})
        assert rows[step - 1]["mismatch/p99"] < AGREES
