"""Requests for rollouts, made of the decoder's own settings."""

from __future__ import annotations

from collections.abc import Sequence

from rs_aligner.config import LengthParams, SamplingParams
from rs_aligner.generation.sampling import Controls
from rs_aligner.rollout import Prompt
from rs_aligner.sample_request import SampleRequest


def request_of(
    prompts: Sequence[Prompt], num: int, controls: Controls, *, step: int = 1, wave_size: int | None = None
) -> SampleRequest:
    sampling = SamplingParams(
        use_greedy=controls.greedy,
        temperature=controls.temperature,
        top_k=controls.top_k,
        top_p=controls.top_p,
        repetition_penalty=controls.repetition_penalty,
        end_strings=controls.end_strings,
    )
    lengths = LengthParams(max_length=controls.max_length, min_length=controls.min_length)
    return SampleRequest(prompts, num, sampling, lengths, step, wave_size)
