"""What the decoder is asked for: waves of prompts in, a stream of finished rollouts out.

A wave is the set of prompts decoded together. How that is done is the business of `paged` (a CPU, on compiled
kernels) and `cohorts` (torch, on anything). What is decoded together depends on the prompts, the config and
the tokens only, never on the clock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from megatron.core.models.gpt import GPTModel

from rs_aligner.generation.allowed import check_allowed
from rs_aligner.generation.cohorts import CohortWave
from rs_aligner.generation.native import NoKernels, load_kernels
from rs_aligner.generation.native_network import NativeNetwork
from rs_aligner.generation.network import Network
from rs_aligner.generation.paged import PagedWave
from rs_aligner.generation.rows import RolloutRow
from rs_aligner.generation.sampling import Controls, derive_seed
from rs_aligner.generation.text import Tokenizer
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.rollout import Prompt, Rollout

_logger = logging.getLogger("rs_aligner")


def new_network(
    model: GPTModel,
    arch: Architecture,
    runtime: Runtime,
    *,
    compiled: bool = True,
    allowed: torch.Tensor | None = None,
) -> Network | NativeNetwork:
    """The fastest forward pass for this model here; logs which, and why not another. Every rank must call it.

    Args:
        model: this rank's part of the policy.
        arch: its architecture.
        runtime: this rank's place.
        compiled: whether kernels may be compiled on a CPU.
        allowed: bool `[V]`, the ids that may be sampled: those that the tokenizer has; None for all.

    Raises:
        ValueError: `allowed` does not fit the model, or allows nothing.
    """
    allowed = check_allowed(allowed, arch.vocab_size)
    kernels, chosen = None, "torch"
    if runtime.device.type == "cpu" and compiled:
        try:
            kernels = load_kernels(arch.head_dim, arch.num_heads // arch.num_kv_heads)
            took = f"compiled in {kernels.seconds:.1f} s" if kernels.seconds else "compiled before"
            chosen = f"kernels for this CPU, {took} by {kernels.compiler}"
        except NoKernels as error:
            chosen = f"torch, which is slower, since {error}"
    if runtime.maximum({"missing": float(kernels is None)})["missing"]:  # ranks must not differ
        chosen = chosen if kernels is None else "torch, which is slower, since another rank has no kernels"
        kernels = None
    if runtime.rank == 0:
        _logger.info("decoder: %s", chosen)
    if kernels is None:
        return Network(model, arch, runtime, allowed)
    return NativeNetwork(model, arch, runtime, kernels, allowed)


def generate(
    network: Network | NativeNetwork,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, Prompt]],
    num_rollouts: int,
    controls: Controls,
    *,
    seed: int,
    step: int,
    policy_version: int = 0,
    wave_size: int | None = None,
    first_index: int = 0,
    kv_cache_bytes: int | None = None,
    limits: Mapping[tuple[int, int], int] | None = None,
) -> Iterator[Rollout]:
    """Draw `num_rollouts` rollouts for each prompt; each is yielded as soon as it ends.

    Every rank of a replica must run this with the same arguments and to the end.

    Args:
        network: the policy's forward pass.
        tokenizer: of the policy.
        prompts: `(group, prompt)` pairs; the group is the prompt's number in the step.
        num_rollouts: N.
        controls: how to sample.
        seed, step: with the prompt's position and the rollout's index they give its seed.
        policy_version: written into the rollouts.
        wave_size: prompts decoded together; all of them by default.
        first_index: index of a prompt's first rollout.
        kv_cache_bytes: most bytes of keys and values on this rank; None for no bound.
        limits: most tokens of single rollouts, by (group, index), where that is less than `max_length`.

    Raises:
        ValueError: a single rollout may not fit into `kv_cache_bytes`, or no token may come.
    """
    wave_size = wave_size or max(1, len(prompts))  # a replica may have no prompt of a short step
    for start in range(0, len(prompts), wave_size):
        rows = [
            RolloutRow(
                group,
                index,
                derive_seed(seed, step, prompt.position, index),
                prompt,
                min((limits or {}).get((group, index), controls.max_length), controls.max_length),
            )
            for group, prompt in prompts[start : start + wave_size]
            for index in range(first_index, first_index + num_rollouts)
        ]
        wave: PagedWave | CohortWave
        if isinstance(network, NativeNetwork):
            wave = PagedWave(network, tokenizer, rows, controls, kv_cache_bytes)
        else:
            wave = CohortWave(network, tokenizer, rows, controls, kv_cache_bytes)
        for row, tokens, log_probs, reason in wave.run():
            yield Rollout(
                group=row.group,
                index=row.index,
                token_ids=tuple(tokens),
                text=wave.end_strings.text(row.prompt.token_ids, tokens, has_ended=reason == "stop"),
                finish_reason=reason,
                policy_version=policy_version,
                seed=row.seed,
                log_probs=tuple(log_probs),
            )
