"""`model.rs.pool`, `.until`, `.rft`: which rollouts a step chooses from, and how many are sampled.

trlX's rejection fine-tuning is written with its own names under `rft`; they stand for the keys of the
other sections, so that there is one way through the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rs_aligner.config.base import Count, Real, Section, Share, Size, problem

if TYPE_CHECKING:
    from rs_aligner.config.rs import RSConfig


class PoolConfig(Section):
    """Which rollouts a step chooses from."""

    improve_steps: Count = 1
    """Steps that train on the same rollouts before new ones are sampled (grow and improve)."""
    max_staleness: Size = 0
    """Later steps for which a kept rollout stays a candidate (a bank of the best); 0: each is used once."""
    restart: bool = False
    """Each cycle trains the starting weights anew, on what the policy before it sampled (ReST-EM)."""
    passes: Count = 1
    """Passes over the kept rollouts of a step."""


class UntilConfig(Section):
    """Samples in rounds, until each prompt has so many accepted rollouts or the budget is spent.

    The budget of a step is `num_rollouts_per_prompt` for each of its prompts, in all: what easy prompts leave
    goes to hard ones.
    """

    accepted: Count
    """Accepted rollouts after which a prompt is sampled no further."""
    at_least: Real
    """The reward from which a rollout is accepted."""
    rollouts_a_round: Count | None = None
    """Rollouts that a prompt gets in a round; then the judge is asked.

    Null: first as many as are wanted, then a quarter of those tried so far, at least one. Fewer are sampled
    in vain than with rounds of a fixed size, in fewer rounds.
    """
    max_rollouts: Count = 64
    """Most rollouts of one prompt."""
    max_tokens: Count | None = None
    """A prompt whose rollouts have this many tokens together gets no further round; null for no bound."""
    tokens_per_prompt: Count | None = None
    """Tokens that a step may sample, for each of its prompts; no round begins beyond it. Null: no bound."""


class RFTConfig(Section):
    """trlX's rejection fine-tuning, by its own names: they set the keys that are named with each."""

    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    """max_new_tokens is `length_params.max_length`; temperature, top_k, top_p, do_sample: how to sample."""
    start_percentile: Share = 0.7
    """The bar of a cycle's first step: this percentile of a prompt's scores."""
    end_percentile: Share = 0.95
    """The bar of a cycle's last step, which is really reached there."""
    n_improve_steps: Count = 4
    """Steps that train on the same rollouts: `pool.improve_steps`."""
    n_generations_per_prompt: Count = 32
    """Rollouts of a prompt: `num_rollouts_per_prompt`."""


def expand_rft(rs: dict[str, Any]) -> dict[str, Any]:
    """The section `model.rs` with what its `rft` stands for.

    Raises:
        ValueError: `rft` says something else than another key that was set, or has a key that trlX has and
            nothing here reads.
    """
    if rs.get("rft") is None:
        return rs
    rft = rs["rft"] if isinstance(rs["rft"], RFTConfig) else RFTConfig.model_validate(rs["rft"])
    if rs.get("selection"):
        raise ValueError("rft brings its own selection; leave selection empty, or leave rft out")
    sampling, lengths = dict(rs.get("sampling_params") or {}), dict(rs.get("length_params") or {})
    for name, value in rft.gen_kwargs.items():
        match name:
            case "max_new_tokens":
                lengths["max_length"] = value
            case "temperature" | "top_k" | "top_p":
                sampling[name] = value
            case "do_sample":
                sampling["use_greedy"] = not value
            case _:
                known = "max_new_tokens, temperature, top_k, top_p, do_sample"
                raise ValueError(f"rft.gen_kwargs.{name} is not known here; known are {known}")
    selection = [
        {"name": "duplicates"},
        {"name": "percentile", "start": rft.start_percentile, "end": rft.end_percentile},
    ]
    return {
        **rs,
        "num_rollouts_per_prompt": rft.n_generations_per_prompt,
        "sampling_params": sampling,
        "length_params": lengths,
        "pool": {**dict(rs.get("pool") or {}), "improve_steps": rft.n_improve_steps},
        "selection": selection,
    }


def check_pools(rs: RSConfig) -> Iterator[str]:
    """What relates several keys of the pool, a line for each problem."""
    pool, until = rs.pool, rs.until
    if pool.improve_steps > 1 and pool.max_staleness:
        keep = "keep one of the two: a cycle's pool is trained on again as it is"
        yield problem("model.rs.pool.max_staleness", pool.max_staleness, f"with pool.improve_steps, {keep}")
    if until is None:
        return
    if until.accepted > until.max_rollouts:
        most = f"should be at most model.rs.until.max_rollouts = {until.max_rollouts}"
        yield problem("model.rs.until.accepted", until.accepted, most)
    if rs.sampling_params.use_greedy:
        yield problem("model.rs.sampling_params.use_greedy", True, "model.rs.until samples: set it to false")
    if rs.offline:
        yield problem("model.rs.offline", list(rs.offline), "nothing is sampled; leave model.rs.until out")
