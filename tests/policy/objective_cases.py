"""The objective's cases of `layout_program.py`: gradients, figures, the starting policy, restarts.

Each is run in every layout; `test_objective_layouts.py` looks at what they found.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from rs_aligner.config import LengthParams, ObjectiveConfig, PolicyModelBase, SamplingParams
from rs_aligner.model import huggingface
from rs_aligner.model.runtime import Runtime
from rs_aligner.objective.terms import TERMS, Term
from rs_aligner.policy.batches import Split
from rs_aligner.policy.outcome import StepStats
from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.policy.reference import response_log_probs
from rs_aligner.policy.trainable import Optimization
from rs_aligner.rollout import Prompt, TrainingRow
from rs_aligner.sample_request import SampleRequest
from tests.policy.entropy_bonus import EntropyBonus
from tests.policy.full_kl import FullKL

OBJECTIVES = {
    "weights": ObjectiveConfig(advantage="group"),
    "clip": ObjectiveConfig(advantage="group", clip=0.2, clip_high=0.3),
    "kl": ObjectiveConfig(kl=0.3),
    "all": ObjectiveConfig(advantage="group", clip=0.2, clip_high=0.3, kl=0.3, kl_estimator="k3+"),
    "entropy": ObjectiveConfig(advantage="group", clip=0.2, clip_high=0.3, kl=0.3, kl_estimator="k3+"),
}
MIXED = ("all", "entropy")
SPLITS = {"1": Split(1), "2": Split(2), "24 tokens": Split(1, tokens=24)}
"""One row of them is longer than 24 tokens, and goes alone."""
NORMALIZATIONS = ("sequence", "token")
WEIGHTS = (1.5, -0.5, 1.0, 0.25, -2.0, 1.0, 0.75)


def objective_rows(
    name: str, rows: Sequence[TrainingRow], log_probs: Sequence[Sequence[float]]
) -> list[TrainingRow]:
    """The rows with what an objective needs, from log-probabilities that are about the policy's own.

    Under `all` the kinds are mixed: some rows have ratios, some a reference, some both, some neither. So they
    are under `entropy`, which has one term more.
    """
    rng = random.Random(7)

    def near(values: Sequence[float], spread: float) -> tuple[float, ...]:
        return tuple(value + rng.uniform(-spread, spread) for value in values)

    found = []
    for i, (row, own) in enumerate(zip(rows, log_probs, strict=True)):
        sampled, reference = near(own, 0.6), near(own, 1.0)
        has_ratios = name == "clip" or (name in MIXED and i % 3 != 0)
        has_reference = name == "kl" or (name in MIXED and i % 2 == 0)
        found.append(
            replace(
                row,
                weight=1.0 if name == "kl" else WEIGHTS[i],
                sampled_log_probs=sampled if has_ratios else (),
                reference_log_probs=reference if has_reference else (),
            )
        )
    return found


def noted_rows(
    rows: Sequence[TrainingRow], log_probs: Sequence[Sequence[float]]
) -> tuple[list[TrainingRow], list[float]]:
    """The rows as a decoder that is off might note them, every third without; and how far off it is."""
    rng, found, off = random.Random(8), [], []
    for i, (row, own) in enumerate(zip(rows, log_probs, strict=True)):
        errors = [rng.uniform(-0.3, 0.3) for _ in own] if i % 3 else []
        off += map(abs, errors)
        noted = tuple(value + error for value, error in zip(own, errors, strict=False))
        found.append(replace(row, decoder_log_probs=noted))
    return found, off


class NoText:
    """A tokenizer for models that have none: no end token, no padding, no text."""

    eos_ids: tuple[int, ...] = ()
    pad_id = None
    num_ids = 0
    end_token_changes: ClassVar[dict[str, Any]] = {}

    def known_ids(self, vocab_size: int) -> Any:
        return np.ones(vocab_size, dtype=bool)

    def continuation(self, prompt: Any, response: Any) -> str:
        return ""


def policy_config(sequence_parallel: bool, distributed: bool) -> PolicyModelBase:
    return PolicyModelBase.model_validate(
        {
            "micro_batch_size": 2,
            "global_batch_size": 7,
            "sequence_parallel": sequence_parallel,
            "optim": {
                "name": "distributed_fused_adam" if distributed else "adam",
                "lr": 1e-2,
                "eps": 1e-3,
                "weight_decay": 0.01,
            },
            "data": {"data_prefix": {"train": "unused"}},
        }
    )


def run_objectives(
    folder: Path, work: Path, rt: Runtime, rows: Sequence[TrainingRow], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Every case in this layout."""
    found: dict[str, Any] = {}
    sequence_parallel = work.name.endswith("sp")

    def new_policy(
        objective: ObjectiveConfig,
        *,
        distributed: bool = True,
        precision: str = "fp32",
        keep_start: bool = True,
    ) -> MegatronPolicy:
        config = policy_config(sequence_parallel, distributed)
        return MegatronPolicy(
            folder,
            config,
            rt,
            NoText(),  # type: ignore[arg-type]  # a stand-in
            optimization=Optimization(lambda step: 1e-2 / (step + 1), precision),
            objective=objective,
            keep_start=keep_start,
        )

    def weights(policy: MegatronPolicy, of: Callable[[Any], torch.Tensor] | None = None) -> dict[str, Any]:
        how = {} if of is None else {"of": of}
        return huggingface.gather_tensors(policy.trainer.ddp.module, policy.arch, rt, **how)

    # The ordinary optimizer leaves each rank the whole gradient.
    for name, objective in OBJECTIVES.items():
        with further_terms(*([EntropyBonus.of] if name == "entropy" else [])):
            policy = new_policy(objective, distributed=False)
        own = response_log_probs(policy.trainer, rows, Split(4))
        given = objective_rows(name, rows, own)
        for normalization in NORMALIZATIONS:
            for size, split in SPLITS.items():
                loss, figures = policy.trainer.gradients(given, split=split, normalization=normalization)
                grads = weights(policy, lambda parameter: parameter.main_grad)
                found[f"objective {name} {normalization} {size}"] = (loss, grads)
                found[f"figures {name} {normalization} {size}"] = {"figures": figures}
        if name == "all":
            plain, _ = policy.trainer.gradients(rows, split=Split(2))
            grads = weights(policy, lambda parameter: parameter.main_grad)
            found["objective none"] = (plain, grads)
            noted, _ = noted_rows(rows, own)
            for size, split in SPLITS.items():
                loss, figures = policy.trainer.gradients(noted, split=split)
                grads = weights(policy, lambda parameter: parameter.main_grad)
                found[f"compared {size}"] = (loss, grads)
                found[f"mismatch {size}"] = {"figures": figures}

    found |= _full_kl(new_policy, weights, rows)
    found["first step"] = {"stats": _first_step(new_policy(OBJECTIVES["clip"]), prompts)}
    for kind, distributed, precision, offload in (
        ("ordinary", False, "fp32", True),
        ("distributed", True, "fp32", False),
        ("bf16", True, "bf16", True),
    ):
        objective = ObjectiveConfig(kl=0.3, offload_reference=offload)

        def new(
            objective: ObjectiveConfig = objective,
            distributed: bool = distributed,
            precision: str = precision,
        ) -> MegatronPolicy:
            return new_policy(objective, distributed=distributed, precision=precision)

        found |= {
            f"{case} {kind}": value for case, value in _start_cases(new, weights, work / kind, rows).items()
        }
    return found


def _full_kl(
    new_policy: Callable[..., MegatronPolicy],
    weights: Callable[..., dict[str, Any]],
    rows: Sequence[TrainingRow],
) -> dict[str, Any]:
    """The divergence from the start behind a step, as one global batch and cut into micro-batches."""
    with further_terms(FullKL.of):
        policy = new_policy(ObjectiveConfig(), distributed=False)
    policy.train(rows)
    found: dict[str, Any] = {"full kl weights": weights(policy)}
    for size in (1, 4):
        loss, figures = policy.trainer.gradients(rows, split=Split(size))
        found[f"full kl {size}"] = (loss, weights(policy, lambda parameter: parameter.main_grad))
        found[f"full kl figures {size}"] = {"figures": figures}
    found["full kl weights afterwards"] = weights(policy)
    return found


@contextmanager
def further_terms(*makers: Callable[[ObjectiveConfig], Term | None]) -> Iterator[None]:
    """Objectives have these terms, too, inside."""
    TERMS.extend(makers)
    try:
        yield
    finally:
        del TERMS[len(TERMS) - len(makers) :]


def _first_step(policy: MegatronPolicy, prompts: Sequence[Prompt]) -> StepStats:
    """Train on rollouts just sampled, with their own log-probabilities as sampler's and as reference's."""
    sampling = SamplingParams(temperature=0.7, top_k=30)
    stream = policy.generate(SampleRequest(prompts, 2, sampling, LengthParams(max_length=12), step=1))
    rollouts = sorted(
        (rollout for replica in policy.gather(list(stream)) for rollout in replica),
        key=lambda rollout: (rollout.group, rollout.index),
    )
    rows = [
        TrainingRow(prompts[r.group].token_ids, r.token_ids, 1.0 - 2 * r.index, r.log_probs, r.log_probs)
        for r in rollouts
    ]
    (stats, *_) = policy.train(rows[:7])
    return stats


def _start_cases(
    new: Callable[[], MegatronPolicy],
    weights: Callable[[MegatronPolicy], dict[str, Any]],
    work: Path,
    rows: Sequence[TrainingRow],
) -> dict[str, Any]:
    """The starting policy and restarts, of one kind of optimizer."""
    found: dict[str, Any] = {}
    untouched = new()
    found["start"] = weights(untouched)
    untouched.train(rows)
    untouched.train(rows)
    found["two steps new"] = weights(untouched)

    def reference(policy: MegatronPolicy) -> dict[str, Any]:
        mine = policy.reference_log_probs(rows)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        assert all(one == mine for one in everyone)
        return {"log_probs": mine}

    policy = new()
    found["reference at start"] = reference(policy)
    policy.train(rows)
    trained = weights(policy)
    found["reference after a step"] = reference(policy)
    found["one step"], found["one step after the reference"] = trained, weights(policy)
    found["trained log_probs"] = {"log_probs": response_log_probs(policy.trainer, rows, Split(2))}
    policy.train(rows)
    found["two steps beside the reference"] = weights(policy)
    policy.save(work / "trained", {})

    policy.restart()
    found["restarted"] = weights(policy)
    policy.save(work / "restarted", {})
    policy.train(rows)
    policy.train(rows)
    found["two steps restarted"] = weights(policy)

    resumed = new()
    resumed.load(work / "restarted")
    resumed.train(rows)
    resumed.save(work / "one_step", {})
    resumed.train(rows)
    found["two steps restarted and resumed"] = weights(resumed)

    resumed = new()
    resumed.load(work / "one_step")
    found["reference of a continued run"] = reference(resumed)
    resumed.train(rows)
    found["two steps resumed after one"] = weights(resumed)
    resumed.load(work / "trained")
    resumed.restart()
    resumed.train(rows)
    resumed.train(rows)
    found["two steps restarted after a load"] = weights(resumed)
    return found
