"""From a checked config to a file of answers: sample, ask the judge if there is one, choose, write.

What `examples/generate.py` does. Every rank runs it in step; the first one writes the file, whole or not at
all. Answers go to the judge while others are still being generated, as in training. Left out on purpose:
going on with a file that was cut short.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rs_aligner.commands import build
from rs_aligner.commands.best_of_n import answer_row, summary
from rs_aligner.commands.run_data import read_prompts
from rs_aligner.config.generate import GenerateConfig
from rs_aligner.files import write_whole
from rs_aligner.reward.protocol import Judge, JudgeFailed
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.failures import judge_failure

if TYPE_CHECKING:
    from rs_aligner.policy.sampler import Sampler

NOT_JUDGED = ScoreFailure("there is no judge")


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
    prompts = read_prompts(data.files, config, tokenizer, positions).prompts[: data.num_prompts]
    with contextlib.ExitStack() as stack:
        client = None
        if config.remote_rm is not None:
            from rs_aligner.reward.client import RemoteGPTRMClient

            client = stack.enter_context(RemoteGPTRMClient(config.remote_rm))
            if is_first:
                build.say("waiting for the judge")
                client.wait_until_ready()
        sampler = stack.enter_context(build.sampler_of(config, tokenizer))
        began = time.monotonic()
        judge = client if sampler.runtime.is_source else None
        groups, problem = sample(config, sampler, judge, prompts, shows=is_first)
        seconds = time.monotonic() - began
    judged = config.remote_rm is not None
    failure = None
    if config.remote_rm is not None:
        failure = problem or judge_failure(groups, config.remote_rm, "answers")
    if is_first:
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, (_line(answer_row(group, config.choice)) for group in groups))
        each, tokens = config.model.answers.num_rollouts_per_prompt, _num_tokens(groups)
        print(f"{len(groups):,} prompts, {each} answers each, {tokens:,} tokens in {seconds:.1f} s: {output}")
        told = summary(groups, judged=judged, answer_key=data.answer_key)
        if told:
            print(told, flush=True)
    if failure is not None:
        raise JudgeFailed(f"{failure}; the answers are in {config.output}, with the scores there are")
    return groups


def sample(
    config: GenerateConfig,
    sampler: Sampler,
    judge: Judge | None,
    prompts: Sequence[Prompt],
    *,
    shows: bool = False,
) -> tuple[list[Group], str | None]:
    """Answers to all prompts with their scores, the same on every rank; a collective.

    Args:
        config: how to sample.
        sampler: the policy.
        judge: None for none, and on ranks that do not speak for their replica.
        prompts: the same on every rank.
        shows: whether this rank shows its progress.

    Returns:
        The groups, and why the judge could not be asked any more; None if it could.
    """
    answers = config.model.answers
    number = answers.num_rollouts_per_prompt
    request = SampleRequest(
        prompts,
        number,
        answers.sampling_params,
        answers.length_params,
        wave_size=answers.rollout_micro_batch_size,
    )
    stream = sampler.generate(request)
    mine: list[tuple[Rollout, Score | ScoreFailure | Future[Score | ScoreFailure]]] = []
    problem: str | None = None
    hidden = None if shows else True  # None: shown on a terminal only
    for rollout in tqdm(stream, "answers", len(prompts) * number, leave=False, disable=hidden):
        score: Score | ScoreFailure | Future[Score | ScoreFailure] = NOT_JUDGED
        if problem is not None:  # the others wait for this rank, so it samples to the end
            score = ScoreFailure(problem)
        elif judge is not None:
            try:
                score = judge.submit(prompts[rollout.group], rollout)
            except (ValueError, OSError, RuntimeError) as error:
                problem = str(error)
                score = ScoreFailure(problem)
        mine.append((rollout, score))
    if judge is not None:
        judge.flush()
    scored = [(rollout, s.result() if isinstance(s, Future) else s) for rollout, s in mine]
    gathered = sampler.gather((scored, problem))
    groups = [Group(prompt, [], []) for prompt in prompts]
    everyone = sorted(
        (pair for pairs, _ in gathered for pair in pairs), key=lambda pair: (pair[0].group, pair[0].index)
    )
    for rollout, result in everyone:
        groups[rollout.group].rollouts.append(rollout)
        groups[rollout.group].scores.append(result)
    return groups, next((f"answers: {text}" for _, text in gathered if text is not None), None)


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot hold
        return json.dumps(row).encode() + b"\n"


def _num_tokens(groups: Sequence[Group]) -> int:
    return sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
