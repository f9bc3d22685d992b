"""Preference pairs over stories: a small model's own continuations, labelled by the sentiment judge."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from rs_aligner.config import LengthParams, PolicyModelBase, SamplingParams
from rs_aligner.data import load_prompts
from rs_aligner.model import runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.trainable import Optimization
from rs_aligner.reward.judges.sentiment import sentiment
from rs_aligner.sample_request import SampleRequest

CLEAR = 0.3  # labels that differ by less are too close to call


def write_pairs(
    data: Path, folder: Path, *, samples: int, per_prompt: int, seed: int, tokens: int = 64
) -> None:
    """Write `train.jsonl` and `validation.jsonl`, rows of the openings of the same names in `data`.

    Args:
        data: the folder with `stories260k/` and `tinystories/`.
        folder: where the files go; it is made.
        samples: continuations of each opening.
        per_prompt: pairs of each opening, at most.
        seed: of the continuations and of which pairs are taken.
        tokens: most tokens of a continuation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = data / "stories260k"
    tokenizer = Tokenizer(model)
    config = PolicyModelBase.model_validate({"data": {"data_prefix": {"train": []}}, "seed": seed})
    rng = random.Random(seed)
    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:
        policy = MegatronPolicy(model, config, rt, tokenizer, optimization=Optimization(lambda step: 0.0))
        for step, name in enumerate(("train", "validation")):
            file = str(data / "tinystories" / f"prompts_{name}.jsonl")
            prompts = load_prompts([file], tokenizer, max_prompt_length=400).prompts
            texts: list[set[str]] = [set() for _ in prompts]
            sampling, lengths = SamplingParams(), LengthParams(max_length=tokens)
            for rollout in policy.generate(SampleRequest(prompts, samples, sampling, lengths, step=step)):
                texts[rollout.group].add(rollout.text)
            with (folder / f"{name}.jsonl").open("w") as out:
                for prompt, responses in zip(prompts, texts, strict=True):
                    for chosen, rejected in _pairs(sorted(responses), per_prompt, rng):
                        row = {"prompt": prompt.text, "chosen": chosen, "rejected": rejected}
                        out.write(json.dumps(row) + "\n")


def _pairs(texts: list[str], most: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Pairs whose labels differ clearly, the better one first, at most so many."""
    labels = dict(zip(texts, sentiment([""] * len(texts), texts, [{}] * len(texts)), strict=True))
    found = [pair for pair in combinations(texts, 2) if abs(labels[pair[0]] - labels[pair[1]]) >= CLEAR]
    rng.shuffle(found)
    for one, other in found[:most]:
        yield (one, other) if labels[one] > labels[other] else (other, one)


def mean_label(data: Path, policy: Path, *, samples: int, seed: int, tokens: int = 64) -> float:
    """The labeller's mean score of a policy's continuations of the held-out openings, at temperature 1."""
    tokenizer = Tokenizer(policy)
    file = str(data / "tinystories" / "prompts_validation.jsonl")
    prompts = load_prompts([file], tokenizer, max_prompt_length=400).prompts
    config = PolicyModelBase.model_validate({"data": {"data_prefix": {"train": []}}, "seed": seed})
    with runtime.start(accelerator="cpu", timeout_minutes=1) as rt:
        model = MegatronPolicy(policy, config, rt, tokenizer, optimization=Optimization(lambda step: 0.0))
        found = model.generate(
            SampleRequest(prompts, samples, SamplingParams(), LengthParams(max_length=tokens))
        )
        texts = [rollout.text for rollout in found]
    labels = sentiment([""] * len(texts), texts, [{}] * len(texts))
    return sum(labels) / len(labels)
