"""Only tokens that may come are drawn, and as often as a softmax over them alone says, in float64.

Which may not: end tokens in responses that are too short, and ids without a token. Their logits are far above
the others' here, and temperatures low, so that beside them no other weight would be left in a float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.allowed import AllowedTokens, check_allowed
from rs_aligner.generation.cache import PromptCache
from rs_aligner.generation.choosing import Chooser
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.native import load_kernels, tile_shape
from rs_aligner.generation.native_network import Session
from rs_aligner.generation.network import Attend, Network
from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.generation.on_torch import TorchDecoder
from rs_aligner.generation.sampling import Controls, derive_seed
from rs_aligner.generation.waves import generate
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.rollout import Prompt
from tests.drawing import request_of
from tests.generation.conftest import Load
from tests.tiny import save_tiny

DRAWS = {"kernels": 4_000, "torch": 1_500}  # torch is slow at drawing so many
VOCAB = 150  # of three blocks, the last one short
EOS = (3, 70)
HOLES = (64, 100, 101, *range(140, VOCAB))
PROMPT = (1, 5, 9)


class Fixed(Network):
    """A network on torch with the same logits behind everything."""

    def __init__(self, logits: torch.Tensor, allowed: torch.Tensor | None) -> None:
        self.logits, self.allowed = logits, allowed
        self.arch = cast(Any, SimpleNamespace(vocab_size=len(logits)))
        self.device = torch.device("cpu")
        self.runtime = cast(Any, SimpleNamespace(is_last_stage=True, from_chooser=lambda tensor: tensor))

    def prefill(self, tokens: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, PromptCache]:
        empty = torch.zeros(2, 1, len(tokens), tokens.shape[1], 1)
        return self.logits.expand(len(tokens), -1), PromptCache([empty], lengths)

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        return self.logits.expand(len(tokens), -1)


class NoText:
    def __init__(self, eos_ids: Sequence[int]) -> None:
        self.eos_ids = tuple(eos_ids)

    def continuation(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        return ""


Drawn = tuple[np.ndarray, np.ndarray]


def by_torch(logits: torch.Tensor, controls: Controls, allowed: torch.Tensor | None) -> Drawn:
    """First tokens of a wave's rollouts, and their log-probabilities."""
    asked = request_of([Prompt("p", "", PROMPT)], DRAWS["torch"], controls)
    limits = {(0, index): 1 for index in range(DRAWS["torch"])}
    decoder = TorchDecoder(Fixed(logits, allowed))
    wave = list(generate(decoder, NoText(EOS), asked, seed=1, limits=limits))
    tokens, log_probs = ([getattr(one, name)[0] for one in wave] for name in ("token_ids", "log_probs"))
    return np.array(tokens), np.array(log_probs)


def by_kernels(logits: torch.Tensor, controls: Controls, allowed: torch.Tensor | None) -> Drawn:
    """The same by the decoder on kernels; every third row is long enough to end, and left out."""
    chooser = chooser_of(len(logits), controls, AllowedTokens(len(logits), EOS, controls.min_length, allowed))
    lengths = np.array([0, 0, controls.min_length] * (DRAWS["kernels"] // 2), dtype=np.int64)
    seeds = np.array([derive_seed(1, i) for i in range(len(lengths))], dtype=np.uint64)
    seen = np.zeros((len(lengths), len(logits)), dtype=bool)
    seen[:, PROMPT] = True
    tokens, log_probs = chooser.choose(tiles_of(logits.expand(len(lengths), -1)), seeds, lengths, seen)
    return tokens[lengths == 0], log_probs[lengths == 0]


def chooser_of(vocab: int, controls: Controls, allowed: AllowedTokens) -> Chooser:
    session = SimpleNamespace(
        arch=SimpleNamespace(vocab_size=vocab),
        runtime=SimpleNamespace(is_last_stage=True, from_chooser=lambda tensor: tensor),
        kernels=load_kernels(8, 2),
    )
    return Chooser(cast(Session, session), controls, allowed)


def tiles_of(rows: torch.Tensor) -> torch.Tensor:
    tiles, width, tile = tile_shape(rows.shape[1], rows.shape[0])
    padded = torch.zeros(tiles * tile, width)
    padded[: len(rows)] = rows
    return padded.view(tiles, tile, width).transpose(1, 2).contiguous()


PATHS = {"kernels": by_kernels, "torch": by_torch}


def exact(logits: torch.Tensor, controls: Controls, forbidden: Sequence[int]) -> np.ndarray:
    """The probabilities of a first token, in float64."""
    values = logits.double().numpy().copy()
    seen = list(PROMPT)
    penalty = controls.repetition_penalty
    values[seen] = np.where(values[seen] > 0, values[seen] / penalty, values[seen] * penalty)
    values[list(forbidden)] = -np.inf
    values = (values - values.max()) / controls.temperature
    if controls.top_k:
        values[values < np.sort(values)[-controls.top_k]] = -np.inf
    weights = np.exp(values) / np.exp(values).sum()
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= controls.top_p]] = 0.0
    return weights / weights.sum()


def assert_drawn_from(tokens: np.ndarray, probs: np.ndarray) -> None:
    """Pearson's chi-squared, at the 0.1 % level; tokens expected fewer than five times are one cell."""
    seen = np.bincount(tokens, minlength=len(probs))
    assert not seen[probs == 0].any()
    expected = probs * len(tokens)
    often = expected >= 5
    cells = np.append(seen[often], seen[~often].sum()), np.append(expected[often], expected[~often].sum())
    there = cells[1] > 0
    statistic = ((cells[0] - cells[1])[there] ** 2 / cells[1][there]).sum()
    freedom = there.sum() - 1
    p = torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)) if freedom else 1.0
    assert p > 1e-3


def steep(temperature: float) -> torch.Tensor:
    """Logits whose allowed tokens are spread over at this temperature, far below those that may not come."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(VOCAB, generator=generator) * temperature
    logits[list(EOS)] = 9.0
    logits[list(HOLES)] = 12.0
    return logits


FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": VOCAB - 4},  # more than may come
    {"top_p": 0.8},
    {"repetition_penalty": 1.5},
    {"top_k": 30, "top_p": 0.9, "repetition_penalty": 1.3},
]


# The first and the last filters on torch are enough for the fast part.
SLOW = [("torch", 1), ("torch", 2), ("torch", 3)]
CASES = [
    pytest.param(path, filters, marks=[pytest.mark.slow] if (path, n) in SLOW else (), id=f"{path}-{filters}")
    for path in PATHS
    for n, filters in enumerate(FILTERS)
]


@pytest.mark.parametrize("temperature", [0.01, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("path", "filters"), CASES)
def test_tokens_come_as_a_softmax_over_those_that_may_come_says(
    path: str, temperature: float, filters: dict[str, Any]
) -> None:
    logits = steep(temperature)
    allowed = torch.ones(VOCAB, dtype=torch.bool)
    allowed[list(HOLES)] = False
    controls = Controls(temperature=temperature, min_length=2, max_length=9, **filters)
    tokens, log_probs = PATHS[path](logits, controls, allowed)
    assert_drawn_from(tokens, exact(logits, controls, [*EOS, *HOLES]))
    plain = logits.double().log_softmax(-1).numpy()  # of the logits as they are
    np.testing.assert_allclose(log_probs, plain[tokens], atol=2e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("temperature", [1e-300, 0.01, 0.03, 0.1])
def test_a_forbidden_end_token_leaves_the_right_one_at_low_temperature(path: str, temperature: float) -> None:
    """An end token of probability 0.9997: at T = 0.1 the second likeliest has all of what is left."""
    logits = torch.full((VOCAB,), -4.0)
    logits[EOS[0]], logits[77] = 9.0, 0.0
    controls = Controls(temperature=temperature, min_length=1, max_length=9)
    tokens, _ = PATHS[path](logits, controls, None)
    assert set(tokens.tolist()) == {77}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("greedy", [False, True])
def test_of_all_but_one_forbidden_the_one_comes(path: str, greedy: bool) -> None:
    torch.manual_seed(1)
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[[140, EOS[0]]] = True
    logits = torch.randn(VOCAB)
    logits[140] = -50.0
    tokens, _ = PATHS[path](logits, Controls(greedy=greedy, min_length=1), allowed)
    assert set(tokens.tolist()) == {140}


@pytest.mark.parametrize("path", PATHS)
def test_where_no_token_may_come_the_key_is_named(path: str) -> None:
    torch.manual_seed(2)
    allowed = torch.zeros(VOCAB, dtype=torch.bool)
    allowed[list(EOS)] = True
    logits = torch.randn(VOCAB)
    with pytest.raises(ValueError, match=r"min_length=1: no token may come before that.* 2 .*set it to 0"):
        PATHS[path](logits, Controls(min_length=1), allowed)
    tokens, _ = PATHS[path](logits, Controls(min_length=0), allowed)
    assert set(tokens.tolist()) == set(EOS)


def test_on_kernels_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    """Rows that may end and rows that may not have different maxima in one vector."""
    torch.manual_seed(3)
    logits = torch.randn(48, VOCAB) * 3
    logits[:, EOS[0]] += 8.0
    seeds = np.array([derive_seed(9, i) for i in range(48)], dtype=np.uint64)
    for temperature in (1.0, 0.2):
        controls = Controls(temperature=temperature, min_length=4)
        chooser = chooser_of(VOCAB, controls, AllowedTokens(VOCAB, EOS, 4))

        def choose(rows: np.ndarray, lengths: np.ndarray, chooser: Chooser = chooser) -> Drawn:
            return chooser.choose(tiles_of(logits[rows]), seeds[rows], lengths, np.zeros((len(rows), 0)))

        mixed = np.arange(48) % 7
        tokens, log_probs = choose(np.arange(48), mixed)
        for row in range(48):
            alone = choose(np.array([row]), mixed[row : row + 1])
            assert (tokens[row], log_probs[row]) == (alone[0][0], alone[1][0])


def test_logits_that_are_no_numbers_still_give_a_token_that_may_come() -> None:
    allowed = torch.ones(VOCAB, dtype=torch.bool)
    allowed[:2] = False
    chooser = chooser_of(VOCAB, Controls(min_length=1), AllowedTokens(VOCAB, (2,), 1, allowed))
    rows = torch.full((20, VOCAB), torch.nan)
    zeros = np.zeros(20, dtype=np.int64)
    tokens, _ = chooser.choose(tiles_of(rows), zeros.astype(np.uint64), zeros, np.zeros((20, 0)))
    assert set(tokens.tolist()) == {3}


@pytest.mark.timeout(120)
def test_a_whole_rollout_has_no_id_without_a_token(load: Load, tmp_path: Path) -> None:
    decoder = load(save_tiny("llama", tmp_path))
    vocab = decoder.network.arch.vocab_size
    decoder.network.allowed = torch.arange(vocab) % 3 != 1
    prompts = [Prompt(str(i), "", (1 + i, 2, 4)) for i in range(3)]

    def ids(**controls: Any) -> set[int]:
        asked = request_of(prompts, 40, Controls(max_length=8, **controls))
        wave = generate(decoder, NoText((6,)), asked, seed=2)
        return {token for rollout in wave for token in rollout.token_ids}

    for controls in ({}, {"temperature": 3.0}, {"greedy": True}, {"top_k": 90}, {"min_length": 8}):
        assert not any(token % 3 == 1 for token in ids(**controls))
    assert len(ids(temperature=3.0)) == vocab - len(range(1, vocab, 3))
    assert 6 not in ids(temperature=3.0, min_length=8)


@pytest.mark.parametrize("greedy", [False, True])
def test_the_least_length_may_be_the_most(greedy: bool) -> None:
    """Every response has exactly so many tokens, and none of them ends it."""
    logits = torch.zeros(8)
    logits[0] = 5.0
    controls = Controls(greedy=greedy, min_length=4, max_length=4)
    asked = request_of([Prompt("p", "", (1,))], 50, controls)
    for rollout in generate(TorchDecoder(Fixed(logits, None)), NoText((0,)), asked, seed=1):
        assert len(rollout.token_ids) == 4
        assert 0 not in rollout.token_ids
        assert rollout.finish_reason == "length"


def test_more_than_the_most_is_refused() -> None:
    with pytest.raises(ValueError, match="min_length=5 must be between 0 and max_length"):
        Controls(min_length=5, max_length=4)


@pytest.mark.parametrize(
    ("allowed", "complaint"),
    [
        (torch.ones(VOCAB + 1, dtype=torch.bool), r"bool \(150,\)"),
        (torch.ones(VOCAB), r"float32 \(150,\): it should be bool"),
        (torch.zeros(VOCAB, dtype=torch.bool), "none of the model's 150 ids may be sampled"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(allowed: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_allowed(allowed, VOCAB)


def test_an_end_token_that_the_model_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="end token 200 is none of the model's 150 ids"):
        AllowedTokens(VOCAB, (3, 200), 1)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_decoder_is_built_with_the_mask(one_rank: Runtime, tmp_path: Path, compiled: bool) -> None:
    arch = read_architecture(save_tiny("llama", tmp_path))
    model = build_model(arch, transformer_config(arch, one_rank, dtype=torch.float32), one_rank)
    mask = torch.arange(arch.vocab_size) < 90

    def built(mask: torch.Tensor) -> torch.Tensor | None:
        decoder = new_decoder(
            model, arch, one_rank, GenerationConfig(engine="kernels" if compiled else "torch"), allowed=mask
        )
        assert isinstance(decoder, KernelDecoder if compiled else TorchDecoder)
        return decoder.network.allowed

    found = built(mask)
    assert found is not None
    assert torch.equal(found, mask)
    assert built(mask | True) is None
    with pytest.raises(ValueError, match="it should be bool"):
        built(mask[:5])
