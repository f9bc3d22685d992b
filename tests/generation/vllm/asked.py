"""The decoder that asks servers, without a model: what its tests share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation import on_vllm
from rs_aligner.generation.decoder import Offer
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.vllm.decoder import VllmDecoder
from rs_aligner.generation.waves import generate
from rs_aligner.rollout import Prompt, Rollout
from tests.drawing import request_of
from tests.generation.vllm.stand_in import StandIn, log_prob_of, stand_in, token_of

VOCAB = 100
IDS = list(range(VOCAB))


@dataclass
class Rank:
    """A rank's place, as far as the decoder looks at it."""

    is_source: bool = True
    votes: list[bool] = field(default_factory=list)

    def any_of_replica(self, flag: bool) -> bool:
        self.votes.append(flag)
        return flag


class Texts:
    """A tokenizer whose tokens are numbers in words."""

    eos_ids: tuple[int, ...] = ()

    def __init__(self, *eos_ids: int) -> None:
        self.eos_ids = eos_ids

    def token(self, text: str) -> int | None:
        return None

    def continuation(self, prompt: Sequence[int], response: Sequence[int], *, raw: bool = False) -> str:
        return "".join(f"{token};" for token in response)


def decoder_for(
    *servers: StandIn | str,
    rank: Any = None,
    allowed: torch.Tensor | None = None,
    vocab_size: int = VOCAB,
    **settings: Any,
) -> VllmDecoder:
    """The decoder of a policy, with short deadlines."""
    settings = {"startup_timeout": 5, "request_timeout": 20, "give_up_after": 30, **settings}
    endpoints = [one if isinstance(one, str) else one.url for one in servers]
    config = GenerationConfig.model_validate({"engine": "vllm", "endpoints": endpoints, "servers": settings})
    arch: Any = type("Arch", (), {"vocab_size": vocab_size})
    model, place = None, rank or Rank()
    offer = Offer(model, arch, place, config, allowed)  # type: ignore[arg-type]  # no model is asked
    decoder = on_vllm.VLLM.new(offer)
    assert isinstance(decoder, VllmDecoder)
    return decoder


def pair(opened: ExitStack, **settings: Any) -> tuple[StandIn, StandIn, VllmDecoder]:
    """Two servers, and a decoder that asks them; nothing waits long for a server that is left out."""
    first, second = (opened.enter_context(stand_in()) for _ in range(2))
    decoder = decoder_for(first, second, **settings)
    opened.callback(decoder.close)
    return first, second, decoder


def alone(opened: ExitStack, **settings: Any) -> tuple[StandIn, VllmDecoder]:
    """One server, and a decoder that asks it."""
    server = opened.enter_context(stand_in())
    decoder = decoder_for(server, **settings)
    opened.callback(decoder.close)
    return server, decoder


def prompts_of(number: int) -> list[Prompt]:
    return [Prompt(str(i), "", (7, 1 + i), position=i) for i in range(number)]


CONTROLS = Controls(max_length=8, temperature=1.0)


def sample(
    decoder: VllmDecoder, num: int = 6, controls: Controls = CONTROLS, texts: Any = None, **how: Any
) -> list[Rollout]:
    request = replace(request_of(prompts_of(num), 3, controls), **how)
    return sorted(
        generate(decoder, texts or Texts(), request, seed=4), key=lambda one: (one.group, one.index)
    )


def assert_whole(rollouts: Sequence[Rollout], num: int = 6) -> None:
    """None is lost or doubled, and each says what its seed says."""
    assert [(one.group, one.index) for one in rollouts] == [(i, j) for i in range(num) for j in range(3)]
    for one in rollouts:
        assert one.token_ids == tuple(token_of(one.seed, place, IDS) for place in range(8))
        assert one.log_probs == tuple(map(log_prob_of, one.token_ids))
        assert one.finish_reason == "length"
