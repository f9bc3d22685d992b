"""A few tokens that tell whether a server computes with the weights that it should have.

The greedy continuations of fixed prompts by the project's own torch decoder, and their log-probabilities,
are what a server has to answer, too. Tokens alone would not do: weights of which one in twenty standard
deviations is noise still say the same, and a vLLM takes a folder that lacks a tensor without a word. So every
token's log-probability has to be ours, within `BOUNDS`, as far as the tokens are ours; and where the first
token differs it is a tie within that bound. What differs by less cannot be told from rounding.

Left out on purpose: asking (`weights.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Self

import torch

from rs_aligner.generation.decoder import Offer, Wave
from rs_aligner.generation.on_torch import TORCH
from rs_aligner.generation.rows import RolloutRow
from rs_aligner.generation.sampling import Controls, derive_seed
from rs_aligner.generation.text import EndStrings
from rs_aligner.record.sealed import seal, unseal
from rs_aligner.rollout import Prompt

NUM_PROMPTS, PROMPT_LENGTH, LENGTH = 4, 24, 16
BOUNDS = {torch.float32: 2e-3, torch.bfloat16: 0.25}
"""Nats by which a log-probability may differ, by the type of the weights."""

Continuation = tuple[Sequence[int], Sequence[float]]
"""A continuation: tokens, and the log-probability of each."""


class _NoEnds:
    """A tokenizer by which nothing ends."""

    eos_ids: tuple[int, ...] = ()

    def continuation(self, prompt: Sequence[int], response: Sequence[int], *, raw: bool = False) -> str:
        return ""

    def token(self, text: str) -> int | None:
        return None


def canary_prompts(vocab_size: int) -> list[tuple[int, ...]]:
    """Prompts of ids drawn from the whole vocabulary, always the same ones."""
    return [
        tuple(derive_seed(number, place) % vocab_size for place in range(PROMPT_LENGTH))
        for number in range(NUM_PROMPTS)
    ]


@dataclass(frozen=True, slots=True)
class Canary:
    """What a server has to answer.

    Attributes:
        prompts: token ids.
        continuations: the greedy continuation of each.
        bound: nats by which a log-probability may differ.
    """

    prompts: Sequence[tuple[int, ...]]
    continuations: Sequence[Continuation]
    bound: float

    def to_json(self) -> bytes:
        """As a file holds it."""
        return json.dumps(seal(asdict(self))).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read it back.

        Raises:
            ValueError: it is none, or not as it was written.
        """
        found = unseal(json.loads(content))
        if set(found) != {one.name for one in fields(cls)}:
            raise ValueError("it is no canary")
        return cls(**found)

    def problem(self, answers: Sequence[Continuation]) -> str | None:
        """What is wrong with a server's answers to the prompts; None if nothing is."""
        for number, (ours, theirs) in enumerate(zip(self.continuations, answers, strict=True)):
            if len(theirs[0]) != len(ours[0]) or len(theirs[1]) != len(ours[1]):
                return f"it answers {len(theirs[0])} tokens where {len(ours[0])} were asked for"
            for place, (token, log_prob, other, noted) in enumerate(
                zip(*ours, *theirs, strict=True), start=1
            ):
                if not abs(log_prob - noted) <= self.bound:  # NaN, too
                    says = "" if token == other else f"says token {other} for {token}, and "
                    return (
                        f"to canary {number + 1} it {says}gives "
                        f"log-probability {noted:.4f} for {log_prob:.4f} at token {place} "
                        f"(they may differ by {self.bound:g})"
                    )
                if token != other:
                    break  # a tie, behind which the texts differ
        return None


def canary_of(offer: Offer) -> Canary:
    """What the policy's weights, as they are now, answer by the torch decoder.

    Every rank of a replica must call it.

    Raises:
        CannotDecode: torch cannot decode this model.
    """
    prompts = canary_prompts(offer.arch.vocab_size)
    # All ids, as a server knows of no tokenizer's; and no budget, since it is small.
    alone = replace(offer, allowed=None, config=offer.config.model_copy(update={"kv_cache_bytes": None}))
    rows = [RolloutRow(number, 0, 0, Prompt("", "", prompt), LENGTH) for number, prompt in enumerate(prompts)]
    wave = Wave(rows, Controls(greedy=True, max_length=LENGTH), EndStrings(_NoEnds(), ()))
    continuations: list[Continuation] = [((), ())] * len(prompts)
    with torch.no_grad():
        for row, tokens, log_probs, _ in TORCH.decoder(alone).decode(wave):
            continuations[row.group] = tuple(tokens), tuple(log_probs)
    return Canary(prompts, continuations, BOUNDS[offer.model.config.params_dtype])
