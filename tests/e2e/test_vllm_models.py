"""Trainings of other models with a real vLLM: a padded mixture on several ranks, and one in bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.chat_models import BYTES, save_tokenizer
from tests.e2e.vllm_world import AGREES, SMALL, World, world_of
from tests.tiny import FAMILIES, save_random

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPECIAL = ["<pad>", "<s>", "</s>"]
KNOWN, VOCAB = len(SPECIAL) + len(BYTES), 320  # ids: of the tokenizer, and of the models
SIZES = {"hidden_size": 64, "head_dim": 32, "vocab_size": VOCAB, "num_hidden_layers": 2}  # heads for vLLM
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FEW = [*SMALL, "model.rs.num_rollout_samples=16", "model.rs.num_rollouts_per_prompt=4"]
SHORT = [*FEW, "model.rs.length_params.max_length=24", "model.micro_batch_size=4"]
BF16_BOUND = 0.25  # nats, as `docs/engines.md` states it


def save_padded(folder: Path) -> Path:
    """A random mixture, with a token for each byte and ids that its tokenizer lacks; returns `folder`."""
    save_tokenizer(folder, SPECIAL, bos="<s>", eos="</s>", named=2)
    config = FAMILIES["qwen3 moe"]()
    for key, value in (SIZES | ENDS).items():
        setattr(config, key, value)
    return save_random(config, folder)


def check(world: World, name: str, rows: list[dict[str, Any]]) -> None:
    """Two steps of `SHORT`, whole and of their step's version, without ids that have no text."""
    for step in (1, 2):
        assert world.is_whole(name, step, 16 * 4, {step - 1})
        assert rows[step - 1]["mismatch/p99"] < AGREES
        ids = [token for row in world.rows(name, step) for token in row["token_ids"]]
        assert len(ids) > 1000
        assert max(ids) < KNOWN  # a fifth of a random model's tokens are none


LAYOUTS = {
    "one": [],
    "pipeline": ["trainer.devices=2", "model.pipeline_model_parallel_size=2"],
    "tensor and data": ["trainer.devices=4", "model.tensor_model_parallel_size=2"],
}


def num_asked(world: World) -> int:
    """Completions that the server was asked for."""
    said = world.servers[0].ask("GET", "/metrics").body.decode()
    lines = [line for line in said.splitlines() if line.startswith("http_requests_total{")]
    return sum(int(float(line.split()[-1])) for line in lines if 'handler="/v1/completions"' in line)


def test_a_mixture_has_the_same_rollouts_in_all_layouts_and_one_rank_of_each_replica_asks(
    vllm_python: Path, test_data: Path, tmp_path: Path
) -> None:
    """Its servers take all experts anew. A busy one's last bits change a token now and then."""
    ledgers: dict[str, list[dict[str, Any]]] = {}
    model = save_padded(tmp_path / "model")
    with world_of(tmp_path, vllm_python, test_data, [], model=model) as world:
        for name, layout in LAYOUTS.items():
            before = num_asked(world)
            rows = world.trained(name, *SHORT, *layout, "trainer.timeout_minutes=3")
            asked = num_asked(world) - before
            check(world, name, rows)
            # One for each prompt, as long as no second rank asks; and 8 of each that does, to try the server.
            assert 2 * 16 < asked < 2 * 2 * 16, name
            ledgers[name] = sorted(world.rows(name, 1), key=lambda row: (row["group"], row["index"]))
    for name, found in ledgers.items():
        pairs = list(zip(found, ledgers["one"], strict=True))
        assert all((a["prompt_id"], a["seed"]) == (b["prompt_id"], b["seed"]) for a, b in pairs)
        same = sum(a["token_ids"] == b["token_ids"] for a, b in pairs)
        print(f"{name}: {same} of {len(pairs)} rollouts of the first step have the same tokens")
        assert same > 0.9 * len(pairs)


def test_a_policy_in_bf16_is_sampled_from_in_bf16_and_in_no_other_type(
    vllm_python: Path, test_data: Path, tmp_path: Path
) -> None:
    name, given = "bf16", [*FEW, "trainer.precision=bf16"]
    with world_of(tmp_path, vllm_python, test_data, ["vllm.dtype=bfloat16"]) as world:
        run = world.train(name, *given)
        first = tmp_path / name / "weights" / "step_000000"  # which stays for both steps
        world.until(lambda: types_of(first), run, name)
        types = types_of(first)
        rows = world.ended(run, name)
        adapted = world.trained("adapted", *FEW, "trainer.precision=bf16", "model.peft.peft_scheme=lora")
        said = world.refused("float32", *FEW)
    assert types == {torch.bfloat16}
    assert types_of(tmp_path / name / "final") == {torch.float32}  # that of the folder it began with
    assert "travel to the servers whole" in world.log("adapted")  # which were not started for any
    assert max(row["mismatch/p99"] for row in adapted) < BF16_BOUND
    for step, row in enumerate(rows, 1):
        assert world.is_whole(name, step, 16 * 4, {step - 1})
        print(f"step {step}: mismatch mean {row['mismatch/mean']:.4f}, p99 {row['mismatch/p99']:.4f}")
        assert AGREES < row["mismatch/p99"] < BF16_BOUND
        assert row["mismatch/mean"] < BF16_BOUND / 10
    assert "it has other weights than it was sent: to canary" in said
    assert "(they may differ by 0.002); start it in the type of the policy's weights, by vllm.dtype" in said


def types_of(folder: Path) -> set[torch.dtype]:
    return {tensor.dtype for file in folder.glob("*.safetensors") for tensor in load_file(file).values()}
