"""Families with a real vLLM: its greedy rollouts are ours, and it takes new weights whole.

A row for each thing that a family computes its own way. Left out on purpose: trainings, which are alike for
all families (`tests/e2e/test_vllm_models.py` has a mixture's).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.address import Address
from rs_aligner.config.sampling import TrainedGenerationConfig
from rs_aligner.generation.decoder import Decoder, Exports, Offer
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.on_vllm import VLLM
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.vllm.canary import Canary, canary_of
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.weights import check_canary
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.rollout import Prompt, Rollout
from tests.chat_models import BYTES, save_tokenizer
from tests.drawing import request_of
from tests.generation.vllm.asked import Texts
from tests.tiny import FAMILIES, save_random
from tests.vllm_server import serve_rollouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SPECIAL = ["<pad>", "<s>", "</s>"]
VOCAB = len(SPECIAL) + len(BYTES)
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
HEADS = {"hidden_size": 64, "head_dim": 32}  # vLLM's CPU build has none of 16
LOG_PROB_BOUND = 1e-4  # nats between two implementations in float32
CONTROLS = Controls(greedy=True, max_length=40)  # beyond a window of 24, also behind the shortest prompt
ROWS = {
    "gpt2": {"n_embd": 64, "n_head": 2},  # LayerNorm, learnt positions, a tied output layer
    "gemma2": HEADS,  # soft caps, windows in every other layer
    "mistral": {**HEADS, "sliding_window": 24},  # a window in each layer
    "qwen3": HEADS,  # norms of queries and keys
    "mixtral": HEADS,  # experts
}


def save(family: str, folder: Path, seed: int) -> Path:
    """A random model of a family with heads that vLLM takes, and a token for each byte; returns `folder`."""
    folder.mkdir()
    save_tokenizer(folder, SPECIAL, bos="<s>", eos="</s>", named=2)
    config = FAMILIES[family]()
    for key, value in (ROWS[family] | ENDS | {"vocab_size": VOCAB}).items():
        setattr(config, key, value)
    return save_random(config, folder, seed)


def greedy(decoder: Decoder) -> list[Rollout]:
    """Continuations of 8 prompts of 3 to 38 tokens."""
    lengths = range(3, 43, 5)
    prompts = [
        Prompt(str(place), "", tuple((7 * place + 11 * i) % VOCAB for i in range(length)), position=place)
        for place, length in enumerate(lengths)
    ]
    found = generate(decoder, Texts(), request_of(prompts, 1, CONTROLS), seed=4)
    return sorted(found, key=lambda one: one.group)


@pytest.mark.parametrize("family", ROWS)
def test_greedy_rollouts_are_ours_by_the_first_weights_and_by_the_next(
    family: str, vllm_python: Path, tmp_path: Path, rt: Runtime
) -> None:
    """And the canary of either does not pass with the other, so that weights which were not taken show."""
    folders = [save(family, tmp_path / f"model_{seed}", seed) for seed in range(2)]
    arch = read_architecture(folders[0])
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    whole = partial(
        huggingface.save_weights, model=model, arch=arch, runtime=rt, source=folders[0], as_trained=True
    )
    ours = new_decoder(model, arch, rt, TrainedGenerationConfig(engine="torch"))
    said, canaries = [], []
    with serve_rollouts(vllm_python, folders[0], tmp_path, "vllm.max_length=128") as server:
        settings: dict[str, Any] = {"engine": "vllm", "endpoints": server.url}
        config = TrainedGenerationConfig.model_validate(settings)
        offer = Offer(model, arch, rt, config, None, Exports(tmp_path / "weights", whole))
        theirs = VLLM.new(offer)
        try:
            for version, folder in enumerate(folders):
                huggingface.load_weights(folder, model, arch, rt)
                assert theirs.prepare(version) == version
                said.append(compared(greedy(theirs), greedy(ours)))
                canaries.append(canary_of(offer))
            assert problem(server.url, canaries[1]) is None
            assert "log-probability" in str(problem(server.url, canaries[0]))
        finally:
            theirs.close(is_over=True)
    assert not any(old == new for old, new in zip(*said, strict=True))


def compared(theirs: list[Rollout], ours: list[Rollout]) -> list[tuple[int, ...]]:
    """The tokens, which have to be the same; so have their log-probabilities, but for rounding."""
    assert [one.token_ids for one in theirs] == [one.token_ids for one in ours]
    for one, other in zip(theirs, ours, strict=True):
        assert len(one.token_ids) == CONTROLS.max_length
        assert one.log_probs == pytest.approx(other.log_probs, abs=LOG_PROB_BOUND)
    return [one.token_ids for one in theirs]


def problem(url: str, canary: Canary) -> str | None:
    return check_canary(VllmConnection(Address.parse(url)), canary, "policy", 60)
