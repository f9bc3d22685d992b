"""`examples/generate.py` with rollouts from vLLM's servers: a real one, and stand-ins for ranks that wait."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.generation.vllm.canary import LENGTH, Continuation, canary_prompts
from rs_aligner.model.families.registry import read_architecture
from tests.e2e.launch import run_script
from tests.generation.vllm.faults import late
from tests.generation.vllm.stand_in import stand_in
from tests.tiny import save_tiny_with_tokenizer
from tests.vllm_server import STORIES, Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ENGINE = "model.answers.generation"
PATIENT = f"{ENGINE}.servers.startup_timeout=120"  # machines are shared


def generate(folder: Path, policy: Path, name: str, *overrides: str) -> tuple[str, list[dict[str, Any]]]:
    """What the script says, and the rows of the file."""
    prompts = folder / "prompts.jsonl"
    texts = ["Once upon a time", "The little dog", "Tim and Sue", "One day"]
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = run_script(
        "generate.py",
        f"output={folder / name}",
        f"pretrained_checkpoint.restore_from_path={policy}",
        f"model.data.files={prompts}",
        *("model.answers.num_rollouts_per_prompt=2", "model.answers.length_params.max_length=48"),
        *("trainer.accelerator=cpu", "trainer.threads=1"),
        *overrides,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, [json.loads(line) for line in (folder / name).read_text().splitlines()]


def continuations_by_transformers(policy: Path, vocab_size: int) -> list[Continuation]:
    """What a server with these weights answers to the canary."""
    model = transformers.AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    found: list[Continuation] = []
    for prompt in canary_prompts(vocab_size):
        ids, log_probs = list(prompt), []
        for _ in range(LENGTH):
            with torch.no_grad():
                last = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(last.argmax()))
            log_probs.append(float(last.max()))
        found.append((ids[len(prompt) :], log_probs))
    return found


def test_servers_of_another_model_are_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    policy = save_tiny_with_tokenizer(tmp_path)
    vocab_size = read_architecture(policy).vocab_size
    with stand_in(vocab_size) as server:
        server.continuations = [
            (tokens, [x - 0.01 for x in log_probs])
            for tokens, log_probs in continuations_by_transformers(policy, vocab_size)
        ]
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text('{"text": "Once upon a time"}\n')
        done = run_script(
            "generate.py",
            f"output={tmp_path / 'answers.jsonl'}",
            f"pretrained_checkpoint.restore_from_path={policy}",
            f"model.data.files={prompts}",
            *(f"{ENGINE}.engine=vllm", f"{ENGINE}.endpoints={server.url}", "trainer.accelerator=cpu"),
            "model.answers.length_params.max_length=16",
            timeout=300,
        )
    assert done.returncode == 2, done.stdout
    assert f"{server.url}" in done.stdout
    assert "it has other weights than pretrained_checkpoint.restore_from_path" in done.stdout
    assert "start it from that folder" in done.stdout
    assert not server.asked


def test_greedy_answers_of_a_real_server_are_those_of_our_kernels(
    stories_server: Running, test_data: Path, tmp_path: Path
) -> None:
    greedy = "model.answers.sampling_params.use_greedy=true"
    policy = test_data / STORIES
    _, ours = generate(tmp_path, policy, "ours.jsonl", greedy, f"{ENGINE}.engine=kernels")
    served = f"{ENGINE}.engine=vllm", f"{ENGINE}.endpoints={stories_server.url}", PATIENT
    said, theirs = generate(tmp_path, policy, "theirs.jsonl", greedy, *served)
    assert f"decoder: vLLM at {stories_server.url}" in said
    for one, other in zip(ours, theirs, strict=True):
        assert other.pop("log_probs") == pytest.approx(one.pop("log_probs"), abs=1e-3)
    assert theirs == ours
    assert max(row["num_tokens"][0] for row in ours) == 48


@pytest.mark.parametrize("layout", ["tensor_model_parallel_size", "pipeline_model_parallel_size"])
def test_ranks_that_hold_a_replica_together_wait_for_servers_together(tmp_path: Path, layout: str) -> None:
    policy = save_tiny_with_tokenizer(tmp_path)
    vocab_size = read_architecture(policy).vocab_size
    with stand_in(vocab_size) as first, stand_in(vocab_size) as second:
        first.faults, second.faults = [late, ...], [late, ...]
        first.continuations = second.continuations = continuations_by_transformers(policy, vocab_size)
        servers = f"[{first.url},{second.url}]"
        served = f"{ENGINE}.engine=vllm", f"{ENGINE}.endpoints={servers}", PATIENT
        alone, rows = generate(tmp_path, policy, "alone.jsonl", *served)
        _, on_two = generate(tmp_path, policy, "two.jsonl", *served, "trainer.devices=2", f"model.{layout}=2")
        asked = len(first.asked) + len(second.asked)
    assert "4 prompts, 2 answers each, " in alone
    assert on_two == rows
    assert asked == 4 + 4  # one rank of the two asks
