"""From a checked config to a file of answers: sample, ask the judge if there is one, choose, write.

What `examples/generate.py` does. Every rank runs it in step; the first one writes the file, whole or not at
all, and keeps others from writing the same one meanwhile. Answers go to the judge while others are still
being generated, as in training. Left out on purpose: going on with a file that was cut short.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rs_aligner import stopping
from rs_aligner.commands import build
from rs_aligner.commands.best_of_n import answer_row, summary
from rs_aligner.commands.run_data import read_prompts
from rs_aligner.config.generate import GenerateConfig
from rs_aligner.files import write_whole
from rs_aligner.record.lease import Lease
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.rollout import Group, Prompt
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.failures import judge_failure
from rs_aligner.trainers.round import Judges, sample_and_score


def write_answers(config: GenerateConfig, *, is_first: bool = True) -> list[Group]:
    """Sample, judge, choose and write; every rank of a run calls this.

    Args:
        config: a checked config.
        is_first: whether this rank writes and shows.

    Returns:
        The prompts with their answers and scores, on every rank.

    Raises:
        JudgeFailed: the judge scored too little. The answers are in the file, with the scores there are.
    """
    data = config.model.data
    # What can be wrong without the judge comes before it.
    tokenizer, positions = build.read_tokenizer(config)
    prompts = tuple(read_prompts(data.files, config, tokenizer, positions).prompts[: data.num_prompts])
    output = Path(config.output)
    with contextlib.ExitStack() as stack:
        if is_first:
            lease = stack.enter_context(Lease(output.with_name(f"{output.name}.owner"), f"output={output}"))
        client = None
        if config.remote_rm is not None:
            from rs_aligner.reward.client import RemoteGPTRMClient

            client = stack.enter_context(RemoteGPTRMClient(config.remote_rm))
            if is_first:
                if not client.is_local:
                    build.say("waiting for the judge")
                with contextlib.suppress(stopping.Stopped):  # the ranks agree on it once they have joined
                    client.wait_until_ready()
        sampler = stack.enter_context(build.sampler_of(config, tokenizer))
        began = time.monotonic()
        judges = Judges(client if sampler.runtime.is_source else None)
        request = _request(config, prompts)
        found = sample_and_score(sampler, request, judges, what="answers", is_first=is_first)
        seconds = time.monotonic() - began
        groups = found.groups
        if is_first:
            lease.check()
            write_whole(output, (_line(answer_row(group, config.choice)) for group in groups))
    judged, failure = config.remote_rm is not None, found.failure
    if config.remote_rm is not None:
        failure = failure or judge_failure(groups, config.remote_rm, "answers")
    if is_first:
        each, tokens = config.model.answers.num_rollouts_per_prompt, _num_tokens(groups)
        print(f"{len(groups):,} prompts, {each} answers each, {tokens:,} tokens in {seconds:.1f} s: {output}")
        told = summary(groups, judged=judged, answer_key=data.answer_key)
        if told:
            print(told, flush=True)
    if failure is not None:
        raise JudgeFailed(f"{failure}; the answers are in {config.output}, with the scores there are")
    return groups


def _request(config: GenerateConfig, prompts: Sequence[Prompt]) -> SampleRequest:
    answers = config.model.answers
    return SampleRequest(
        prompts,
        answers.num_rollouts_per_prompt,
        answers.sampling_params,
        answers.length_params,
        wave_size=answers.rollout_micro_batch_size,
    )


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold
        return json.dumps(row).encode() + b"\n"


def _num_tokens(groups: Sequence[Group]) -> int:
    return sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
