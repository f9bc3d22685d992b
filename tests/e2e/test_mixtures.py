"""Mixtures of experts from one line, judge and all: on one rank, and with their experts on two."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.e2e.launch import ROOT, read_metrics, run_command
from tests.ports import free_port
from tests.reward.service import service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
JUDGE = """
def even_share(prompts, responses, metadata):
    return [sum(c in "02468" for c in r) / max(len(r), 1) for r in responses]
"""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
MADE: dict[str, Any] = {
    "mixtral": lambda of: transformers.MixtralConfig(
        **SIZES, **of, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.02
    ),
    "qwen3_moe": lambda of: transformers.Qwen3MoeConfig(
        **SIZES, **of, num_experts=4, moe_intermediate_size=24, head_dim=16, mlp_only_layers=[0]
    ),
}
LAYOUTS = {"one": [], "two": ["trainer.devices=2", "model.expert_model_parallel_size=2"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Policies, prompts and runs; `port` says where the judge is."""
    folder = tmp_path_factory.mktemp("mixtures")
    (folder / "judge.py").write_text(JUDGE)
    for name, first in (("train", 10), ("dev", 70)):
        rows = [{"text": f"{first + i}+{i}="} for i in range(20)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_policy = runpy.run_path(str(ROOT / "examples" / "small_policy.py"))["save_policy"]
    for family, config in MADE.items():
        save_policy(folder / family, "0123456789+=", 0, hidden=96, layers=3, heads=4, positions=64)
        made = transformers.AutoConfig.from_pretrained(folder / family).to_dict()
        ids = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config({key: made[key] for key in ids}))
        model.save_pretrained(folder / family)
    port = free_port()
    (folder / "port").write_text(str(port))
    with service(folder, port, f"judge.function={folder / 'judge.py'}:even_share") as judge:
        judge.wait_until_ready()
        yield folder


def train(folder: Path, family: str, layout: str, *more: str) -> Path:
    """Two steps; `more` are further settings."""
    run = folder / (f"{family} {layout}" + " with adapters" * bool(more))
    prefix = f"{{train: {folder}/train.jsonl, validation: {folder}/dev.jsonl}}"
    done = run_command(
        *(sys.executable, "-m", "rs_aligner", "train"),
        f"exp_manager.explicit_log_dir={run}",
        "exp_manager.create_tensorboard_logger=false",
        f"remote_rm.reward_model.port={(folder / 'port').read_text()}",
        f"pretrained_checkpoint.restore_from_path={folder / family}",
        f"model.data.data_prefix={prefix}",
        "trainer.rs.max_steps=2",
        "trainer.rs.val_check_interval=2",
        "trainer.timeout_minutes=5",
        "trainer.threads=1",
        "model.rs.num_rollout_samples=8",
        "model.rs.num_rollouts_per_prompt=4",
        "model.rs.length_params.max_length=6",
        "model.global_batch_size=4",
        "model.micro_batch_size=2",
        "model.optim.lr=1e-3",
        "model.optim.eps=1e-4",
        "model.optim.sched.name=constant",
        "model.optim.sched.warmup_steps=0",
        *(*LAYOUTS[layout], *more),
        timeout=250,
    )
    assert done.returncode == 0, done.stdout
    assert "decoder: torch" in done.stdout
    return run


@pytest.mark.parametrize("family", MADE)
def test_two_steps_are_the_same_with_the_experts_on_two_ranks_and_transformers_loads_the_end(
    folder: Path, family: str
) -> None:
    one, two = (train(folder, family, layout) for layout in LAYOUTS)
    check_figures(one, two)
    of_routers = [row.get("loss/routers") for row in read_metrics(one) if row["step"]]
    if family == "mixtral":  # whose config asks for it: 0.02 of what is 2 where experts are used alike
        assert all(0.039 < loss < 0.08 for loss in of_routers)
    else:
        assert of_routers == [None, None]
    start, *ends = (weights(path) for path in (folder / family, one / "final", two / "final"))
    for name, tensor in start.items():
        assert not torch.equal(ends[0][name], tensor), name
        assert (ends[1][name] - ends[0][name]).norm() <= 1e-3 * (ends[0][name] - tensor).norm(), name
    _, report = transformers.AutoModelForCausalLM.from_pretrained(two / "final", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def check_figures(one: Path, two: Path) -> None:
    """See that two runs have the same figures but for rounding."""
    for single, shared in zip(read_metrics(one), read_metrics(two), strict=True):
        assert set(shared) == set(single)
        losses, scores = ("loss", "loss/routers"), ("reward/mean", "reward/kept_mean", "validation/reward")
        for key in ("step", *losses, "grad_norm", *scores):
            if key in single:
                assert shared[key] == pytest.approx(single[key], rel=1e-4), key


def test_adapters_beside_experts_are_those_of_peft_and_change_the_attention_alone(folder: Path) -> None:
    """On one rank an adapter folder is written, on two that share the experts a whole model."""
    base, lora = folder / "qwen3_moe", ("model.peft.peft_scheme=lora", "model.peft.lora_tuning.adapter_dim=4")
    one = train(folder, base.name, "one", *lora, "model.peft.export=adapter")
    two = train(folder, base.name, "two", *lora)
    check_figures(one, two)
    start, end = weights(base), weights(two / "final")
    changed = {name for name, tensor in start.items() if not torch.equal(end[name], tensor)}
    assert changed == {name for name in start if name.endswith("_proj.weight") and ".self_attn." in name}
    model = transformers.AutoModelForCausalLM.from_pretrained
    adapted = peft.PeftModel.from_pretrained(model(base, dtype=torch.float32), str(one / "final"))
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        plain, found = model(base, dtype=torch.float32)(tokens).logits, adapted(tokens).logits
        assert (found - plain).abs().max() > 1e-3
        assert (model(two / "final", dtype=torch.float32)(tokens).logits - found).abs().max() < 1e-4


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
