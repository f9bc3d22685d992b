"""Families end to end: a served judge, two steps of rejection sampling, and `transformers` loads the result.

On two pipeline stages, so that what only the first or the last one has is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

from tests.chat_models import BYTES, save_tokenizer
from tests.e2e.launch import ROOT, read_metrics, run_command
from tests.ports import free_port
from tests.reward.service import service
from tests.tiny import OF_GPT2, save_gpt2_tokenizer, save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
JUDGE = """
def share_of_letters(prompts, responses, metadata):
    return [sum(c.isalpha() for c in r) / max(len(r), 1) for r in responses]
"""


def save_gpt2(folder: Path) -> None:
    folder.mkdir()
    number = save_gpt2_tokenizer(folder)
    config = transformers.GPT2Config(**{**OF_GPT2, "vocab_size": number, "n_layer": 2})
    config.bos_token_id = config.eos_token_id = 0
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


def save_other(family: str, folder: Path) -> None:
    """A tiny model of a family, with a token for each byte."""
    special = ["<pad>", "<s>", "</s>"]
    save_tokenizer(folder, special, bos="<s>", eos="</s>", named=2)
    save_tiny(family, folder, layers=2, vocab_size=len(special) + len(BYTES))


OTHERS = ("smollm3", "granite", "olmo2", "olmo3", "phi3", "gemma2", "gemma3")
MODELS: dict[str, Callable[[Path], None]] = {
    "gpt2": save_gpt2,
    **{family: partial(save_other, family) for family in OTHERS},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder with rows, and the port of a judge."""
    folder, port = tmp_path_factory.mktemp("families"), free_port()
    (folder / "judge.py").write_text(JUDGE)
    rows = [{"text": f"{number} or not"} for number in range(10, 30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with service(folder, port, f"judge.function={folder / 'judge.py'}:share_of_letters") as judge:
        judge.wait_until_ready()
        yield folder, port


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_trained_by_rejection_sampling_and_transformers_loads_it(
    served: tuple[Path, int], name: str
) -> None:
    folder, port = served
    torch.manual_seed(0)
    MODELS[name](folder / name)
    done = run_command(
        *(sys.executable, str(ROOT / "examples" / "train_rs.py")),
        f"exp_manager.explicit_log_dir={folder / f'{name}_run'}",
        f"remote_rm.reward_model.port={port}",
        f"pretrained_checkpoint.restore_from_path={folder / name}",
        f"model.data.data_prefix={{train: {folder}/train.jsonl}}",
        "trainer.rs.max_steps=2",
        "trainer.devices=2",
        "trainer.threads=1",
        "trainer.timeout_minutes=2",
        "model.pipeline_model_parallel_size=2",
        "model.rs.num_rollout_samples=4",
        "model.rs.num_rollouts_per_prompt=4",
        "model.rs.length_params.max_length=6",
        "model.global_batch_size=2",
        "model.optim.lr=1e-3",
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    assert [row["rollouts/scored"] for row in read_metrics(folder / f"{name}_run")] == [16, 16]
    trained, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder / f"{name}_run" / "final", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    start = transformers.AutoModelForCausalLM.from_pretrained(folder / name).state_dict()
    assert trained.config.model_type.removesuffix("_text") == name
    assert all(not torch.equal(start[key], one) for key, one in trained.state_dict().items())
    transformers.AutoTokenizer.from_pretrained(folder / f"{name}_run" / "final")
