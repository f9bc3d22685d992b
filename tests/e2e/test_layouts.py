"""The command line on one rank, DP=2, TP=2 and PP=2: the same rollouts, scores, kept sets and policy.

Also what a second start in the same folder does, and that all loggers hold the same figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.e2e.launch import ROOT, read_metrics, run_command
from tests.loggers.wandb_files import wandb_history
from tests.ports import free_port
from tests.reward.service import service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LAYOUTS = {
    "one": [],
    "dp2": ["trainer.devices=2"],
    "tp2": ["trainer.devices=2", "model.tensor_model_parallel_size=2"],
    "pp2": ["trainer.devices=2", "model.pipeline_model_parallel_size=2"],
}
# Ranks are started by whatever way in their first process came: a script, a module, an installed command.
WAYS_IN = {
    "dp2": [sys.executable, "-m", "rs_aligner", "train"],
    "tp2": [str(Path(sys.executable).with_name("rs-aligner")), "train"],
}
JUDGE = """
def even_share(prompts, responses, metadata):
    return [sum(c in "02468" for c in r) / max(len(r), 1) for r in responses]
"""


class Runs:
    """Runs with one judge on one tiny policy, each done once."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def train(self, name: str, *overrides: str, status: int = 0) -> str:
        """Train into the folder `name`, to end with this status; returns what was printed."""
        prefix = f"{{train: {self.folder}/train.jsonl, validation: {self.folder}/dev.jsonl}}"
        done = run_command(
            *WAYS_IN.get(name, [sys.executable, str(ROOT / "examples" / "train_rs.py")]),
            f"exp_manager.explicit_log_dir={self.folder / name}",
            f"remote_rm.reward_model.port={self.port}",
            f"pretrained_checkpoint.restore_from_path={self.folder / 'policy'}",
            f"model.data.data_prefix={prefix}",
            "trainer.rs.max_steps=2",
            "trainer.rs.val_check_interval=2",
            "trainer.timeout_minutes=2",
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
            *overrides,
            timeout=200,
            WANDB_MODE="offline",
            WANDB_SILENT="true",
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def ledger(self, name: str) -> list[dict[str, Any]]:
        files = sorted((self.folder / name / "rollouts").glob("step_*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        shards = (self.folder / name / "final").glob("*.safetensors")
        return {key: value for shard in shards for key, value in safetensors.torch.load_file(shard).items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("layouts")
    tokenizer = transformers.AutoTokenizer.from_pretrained(_start(folder))
    assert tokenizer.bos_token_id == 1
    (folder / "judge.py").write_text(JUDGE)
    for name, first in (("train", 10), ("dev", 70)):
        rows = [{"text": f"{first + i}+{i}="} for i in range(20)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    port = free_port()
    with service(folder, port, f"judge.function={folder / 'judge.py'}:even_share") as judge:
        judge.wait_until_ready()
        runs = Runs(folder, port)
        for name, overrides in LAYOUTS.items():
            runs.train(name, "exp_manager.create_tensorboard_logger=false", *overrides)
        yield runs


def _start(folder: Path) -> Path:
    """A tiny random policy with the arithmetic task's characters as its tokens; layers that two can share."""
    import runpy

    task = runpy.run_path(str(ROOT / "examples" / "small_policy.py"))
    some = {"hidden": 96, "layers": 3, "heads": 4, "positions": 64}
    task["save_policy"](folder / "policy", "0123456789+=", 0, **some)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = transformers.AutoConfig.from_pretrained(folder / "policy")
    config = transformers.LlamaConfig(**{**made.to_dict(), **sizes, "num_key_value_heads": 2, "head_dim": 8})
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "policy")
    return folder / "policy"


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_rollouts_scores_and_kept_sets_do_not_depend_on_the_layout(runs: Runs, layout: str) -> None:
    keys = (
        "step",
        "group",
        "index",
        "prompt_id",
        "token_ids",
        "response",
        "seed",
        "reward",
        "kept",
        "reason",
    )
    one, other = runs.ledger("one"), runs.ledger(layout)
    assert len(one) == 2 * 8 * 4
    assert [[row[k] for k in keys] for row in other] == [[row[k] for k in keys] for row in one]


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_the_trained_policy_does_not_depend_on_the_layout(runs: Runs, layout: str) -> None:
    one, other = runs.weights("one"), runs.weights(layout)
    assert set(one) == set(other)
    for name, weight in one.items():
        assert (other[name] - weight).norm() <= 1e-4 * weight.norm(), name
    transformers.AutoModelForCausalLM.from_pretrained(runs.folder / layout / "final")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_the_figures_do_not_depend_on_the_layout(runs: Runs, layout: str) -> None:
    for one, other in zip(read_metrics(runs.folder / "one"), read_metrics(runs.folder / layout), strict=True):
        assert set(one) == set(other)
        for key in one:
            if not key.startswith("time/"):
                # The distance to the start is 0 at first, give or take a rounding of log-probabilities, and
                # decoder and trainer differ in nothing else.
                least = 1e-6 if key == "kl/to_start" else 1e-5 if key.startswith("mismatch/") else 0.0
                assert other[key] == pytest.approx(one[key], rel=1e-4, abs=least), key


def test_replicas_that_select_differently_end_at_once_with_one_error(runs: Runs) -> None:
    """As many of each prompt on both, so that both could train, on other rows."""
    (runs.folder / "keep.py").write_text(
        "def keep(prompt, responses, rewards, metadata):\n"
        "    marks = [hash((response, place)) for place, response in enumerate(responses)]\n"
        "    return [mark == min(marks) for mark in marks]\n"
    )
    selector = f"[{{name: function, function: '{runs.folder / 'keep.py'}:keep'}}]"
    off = ["exp_manager.create_tensorboard_logger=false", "trainer.rs.val_check_interval=null"]
    said = runs.train("unlike", *LAYOUTS["dp2"], *off, f"model.rs.selection={selector}", status=1)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    for part in (
        "step 1: the selections are not the same",
        "of prompt ",
        "'rejected by keep'",
        "PYTHONHASHSEED",
    ):
        assert part in line
    assert "Traceback" not in said
    left = [path.name for path in (runs.folder / "unlike" / "rollouts").iterdir()]
    assert left == ["step_000001.open"]  # what was scored stays, and nothing is selected


def test_a_checkpoint_can_be_started_from_by_itself(runs: Runs) -> None:
    checkpoint = runs.folder / "one" / "checkpoints" / "step_000002"
    runs.train(
        "again",
        "exp_manager.create_tensorboard_logger=false",
        f"pretrained_checkpoint.restore_from_path={checkpoint}",
        "trainer.rs.max_steps=1",
    )
    before, after = read_metrics(runs.folder / "one")[-1], read_metrics(runs.folder / "again")[0]
    assert after["step"] == 0
    assert after["validation/reward"] == pytest.approx(before["validation/reward"])
    transformers.AutoModelForCausalLM.from_pretrained(runs.folder / "again" / "final")


def test_a_second_start_continues_in_one_metrics_file_and_all_loggers_agree(runs: Runs) -> None:
    wandb = ["exp_manager.create_wandb_logger=true", "exp_manager.create_tensorboard_logger=true"]
    first = runs.train("twice", "trainer.rs.max_steps=1", *wandb)
    assert "Traceback" not in first
    again = runs.train("twice", "trainer.rs.max_steps=2", *wandb)
    assert "continuing behind step 1" in again
    rows = read_metrics(runs.folder / "twice")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert list((runs.folder / "twice").glob("metrics.jsonl*")) == [runs.folder / "twice" / "metrics.jsonl"]
    assert not list((runs.folder / "twice").glob("run_*"))
    through = {row["token_ids"].__repr__() for row in runs.ledger("one")}
    assert {row["token_ids"].__repr__() for row in runs.ledger("twice")} == through
    _assert_tensorboard_holds(rows, runs.folder / "twice" / "logs")
    _assert_wandb_holds(rows, runs.folder / "twice" / "logs")


def _assert_tensorboard_holds(rows: list[dict[str, Any]], folder: Path) -> None:
    events = EventAccumulator(str(folder))
    events.Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    for row in rows:
        for key, value in row.items():
            if key != "step":
                assert found[key, row["step"]] == pytest.approx(value, rel=1e-5), (key, row["step"])


def _assert_wandb_holds(rows: list[dict[str, Any]], folder: Path) -> None:
    found = wandb_history(folder)
    for row in rows:
        for key, value in row.items():
            if key != "step":
                assert found[key, row["step"]] == pytest.approx(value, rel=1e-5), (key, row["step"])
