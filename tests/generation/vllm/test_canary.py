"""The canary: what the policy's own decoder answers, and which answers of a server pass."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.decoder import Offer
from rs_aligner.generation.vllm.canary import LENGTH, NUM_PROMPTS, Canary, canary_of, canary_prompts
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(300)
CANARY = Canary([(1, 2)], [((5, 6, 7), (-0.5, -1.0, -2.0))], bound=0.1)


def answer(
    tokens: tuple[int, ...] = (5, 6, 7), log_probs: tuple[float, ...] = (-0.5, -1.0, -2.0)
) -> str | None:
    return CANARY.problem([(tokens, log_probs)])


def test_the_very_answer_and_one_within_the_bound_pass() -> None:
    assert answer() is None
    assert answer(log_probs=(-0.59, -0.91, -2.09)) is None


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("wrong", [-0.11, 0.11, math.nan, -math.inf])
def test_a_log_probability_out_of_bounds_does_not(place: int, wrong: float) -> None:
    log_probs = [-0.5, -1.0, -2.0]
    log_probs[place] += wrong
    problem = answer(log_probs=tuple(log_probs))
    assert f"at token {place + 1}" in str(problem)


def test_another_token_passes_only_as_a_tie_and_what_follows_it_is_not_compared() -> None:
    assert answer((5, 9, 1), (-0.5, -1.05, -7.0)) is None
    assert answer((5, 9, 7), (-0.5, -1.2, -2.0)) is not None


def test_an_answer_of_another_length_does_not_pass() -> None:
    assert answer((5, 6), (-0.5, -1.0)) is not None
    assert answer((5, 6, 7), (-0.5, -1.0)) is not None


def test_it_is_read_back_as_it_was_written_and_not_when_it_was_changed() -> None:
    content = CANARY.to_json()
    again = Canary.from_json(content)
    assert again.problem(CANARY.continuations) is None
    assert again.bound == CANARY.bound
    assert CANARY.problem(again.continuations) is None
    with pytest.raises(ValueError, match="checksum"):
        Canary.from_json(content.replace(b"-0.5", b"-0.6"))


def test_what_the_policy_sings_is_what_transformers_says(tmp_path: Path, rt: Runtime) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder, model, arch, rt)
    # Neither ids that a tokenizer lacks nor a budget changes it: a server knows of neither.
    allowed = torch.ones(arch.vocab_size, dtype=torch.bool)
    allowed[: arch.vocab_size // 2] = False
    canary = canary_of(Offer(model, arch, rt, GenerationConfig(kv_cache_bytes=1), allowed))
    assert canary.prompts == canary_prompts(arch.vocab_size)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert len(canary.continuations) == NUM_PROMPTS
    for prompt, (tokens, log_probs) in zip(canary.prompts, canary.continuations, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        assert logits.argmax(-1).tolist() == list(tokens)
        assert len(tokens) == LENGTH
        torch.testing.assert_close(expected[range(LENGTH), list(tokens)], torch.tensor(log_probs))
    worse = replace(canary, bound=1e-4)
    with torch.no_grad():
        next(model.parameters()).add_(0.05)
    assert (
        worse.problem(canary_of(Offer(model, arch, rt, GenerationConfig(), None)).continuations) is not None
    )
