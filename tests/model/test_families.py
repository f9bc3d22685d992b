"""Every supported family: the Megatron policy, its decoder and its export are the Hugging Face model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file

from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.rollout import Prompt
from tests.drawing import request_of
from tests.policy.objective_cases import NoText
from tests.tiny import FAMILIES, save_tiny

pytestmark = pytest.mark.timeout(120)
NEW_TOKENS = 12


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp("families") / request.param)


def token_ids(*shape: int) -> torch.Tensor:
    return torch.randint(96, shape, generator=torch.Generator().manual_seed(3))


def test_the_logits_are_those_of_transformers(model: GPTModel, reference: torch.nn.Module) -> None:
    tokens = token_ids(3, 100)
    with torch.no_grad():
        got = model(tokens, torch.arange(100).expand_as(tokens), None)
        expected = reference(tokens).logits
    assert expected.std() > 0.1
    assert (got - expected).abs().max() < 1e-4


def test_rows_of_padding_on_the_right_leave_the_logits_before_it(model: GPTModel) -> None:
    tokens = token_ids(2, 20)
    padded = torch.cat([tokens, token_ids(2, 13)], dim=1)
    with torch.no_grad():
        short = model(tokens, torch.arange(20).expand_as(tokens), None)
        long = model(padded, torch.arange(33).expand_as(padded), None)
    assert (long[:, :20] - short).abs().max() < 1e-5


def test_greedy_decoding_gives_the_tokens_of_the_full_forward(
    model: GPTModel, reference: torch.nn.Module, folder: Path, rt: Runtime
) -> None:
    rng = random.Random(4)
    prompts = [tuple(rng.randrange(96) for _ in range(n)) for n in (1, 9, 30)]
    batch = [Prompt(str(i), "", prompt) for i, prompt in enumerate(prompts)]
    decoder = new_decoder(model, read_architecture(folder), rt)
    asked = request_of(batch, 1, Controls(greedy=True, max_length=NEW_TOKENS))
    for rollout in generate(decoder, NoText(), asked, seed=1):
        tokens = list(prompts[rollout.group])
        for log_prob in rollout.log_probs:
            with torch.no_grad():
                last = reference(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            assert log_prob == pytest.approx(float(last.max()), abs=1e-4)
            tokens.append(int(last.argmax()))
        assert list(rollout.token_ids) == tokens[-NEW_TOKENS:]


def test_what_was_read_and_written_is_the_same_to_the_bit_and_transformers_loads_it(
    model: GPTModel, reference: torch.nn.Module, folder: Path, rt: Runtime, tmp_path: Path
) -> None:
    arch = read_architecture(folder)
    huggingface.save_weights(tmp_path / "out", model, arch, rt, folder)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read_architecture(tmp_path / "out") == arch
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = token_ids(1, 20)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, reference(tokens).logits)
