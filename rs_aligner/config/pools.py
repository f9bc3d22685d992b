"""`model.rs.pool`, `.until`, `.rft`: which rollouts a step chooses from, and how many are sampled.

trlX's rejection fine-tuning is written with its own names under `rft`; they stand for the keys of the
other sections, so that there is one way through the code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from rs_aligner.config.base import Count, Real, Section, Share, Size, problem
from rs_aligner.config.common import LengthParams, SamplingParams
from rs_aligner.config.selection import DuplicatesConfig, PercentileConfig

if TYPE_CHECKING:
    from rs_aligner.config.rs import RSConfig

_logger = logging.getLogger("rs_aligner")
GEN_KWARGS = ("max_new_tokens", "temperature", "top_k", "top_p", "do_sample")
"""What of trlX's `gen_kwargs` is read."""


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
    """The bar of a cycle's first step: this percentile of all of a prompt's scores, equal answers counted."""
    end_percentile: Share = 0.95
    """The bar of a cycle's last step, which is really reached there."""
    n_improve_steps: Count = 4
    """Steps that train on the same rollouts: `pool.improve_steps`."""
    n_generations_per_prompt: Count = 32
    """Rollouts of a prompt: `num_rollouts_per_prompt`."""

    @field_validator("gen_kwargs")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := [name for name in value if name not in GEN_KWARGS]:
            raise ValueError(f"{', '.join(unknown)} is not known here; known are {', '.join(GEN_KWARGS)}")
        if not isinstance(value.get("do_sample", True), bool):
            raise ValueError("do_sample should be true or false")
        return value

    @field_validator("end_percentile")
    @classmethod
    def _rises(cls, value: float, info: ValidationInfo) -> float:
        start = info.data.get("start_percentile", value)
        if value < start:
            raise ValueError(f"should be at least model.rs.rft.start_percentile = {start}")
        return value

    @property
    def selection(self) -> tuple[PercentileConfig, DuplicatesConfig]:
        """The selectors that its names stand for, in trlX's order.

        The percentile counts every sample, also the same answer again: a policy that finds a good answer
        more often raises the bar for the others. With the duplicates out first it would stay where it was.
        """
        start, end = self.start_percentile, self.end_percentile
        bar = PercentileConfig(name="percentile", start=start, end=end, above_lowest=True)
        return bar, DuplicatesConfig(name="duplicates")


def expand_rft(rs: dict[str, Any], num_rollouts_per_prompt: int) -> dict[str, Any]:
    """The section `model.rs` with what its `rft` stands for; as it is where `rft` is not valid.

    A key of another section that `rft` overrules is warned of, unless it is at its default, here or in trlX.

    Args:
        rs: the section as it was written.
        num_rollouts_per_prompt: the default of that key.
    """
    try:
        rft = RFTConfig.model_validate(rs["rft"])
    except ValidationError:  # told of when the field itself is validated
        return rs
    sampling: dict[str, Any] = {}
    lengths: dict[str, Any] = {}
    for name, value in rft.gen_kwargs.items():
        match name:
            case "max_new_tokens":
                lengths["max_length"] = value
            case "do_sample":
                sampling["use_greedy"] = not value
            case _:
                sampling[name] = value
    here = {"num_rollouts_per_prompt": rft.n_generations_per_prompt}
    if rs.get("num_rollouts_per_prompt") != RFTConfig().n_generations_per_prompt:
        _warn_of_overruled("model.rs", rs, here, {"num_rollouts_per_prompt": num_rollouts_per_prompt})
    expanded = {**rs, **here, "selection": rs.get("selection") or rft.selection}
    for section, sets, default in (
        ("pool", {"improve_steps": rft.n_improve_steps}, PoolConfig()),
        ("sampling_params", sampling, SamplingParams()),
        ("length_params", lengths, LengthParams()),
    ):
        given = dict(rs.get(section) or {})
        _warn_of_overruled(f"model.rs.{section}", given, sets, default.model_dump())
        expanded[section] = {**given, **sets}
    return expanded


def _warn_of_overruled(
    section: str, given: Mapping[str, Any], sets: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    for name, value in sets.items():
        if given.get(name, value) not in (value, defaults[name]):
            _logger.warning(
                "%s.%s = %s has no effect: model.rs.rft makes it %s", section, name, given[name], value
            )


def check_pools(rs: RSConfig) -> Iterator[str]:
    """What relates several keys of the pool, a line for each problem."""
    pool, until = rs.pool, rs.until
    if pool.improve_steps > 1 and pool.max_staleness:
        keep = "keep one of the two: a cycle's pool is trained on again as it is"
        yield problem("model.rs.pool.max_staleness", pool.max_staleness, f"with pool.improve_steps, {keep}")
    if rs.rft is not None and rs.selection != rs.rft.selection:
        names = [selector.name for selector in rs.selection]
        own = "model.rs.rft brings a selection of its own; leave one of the two out"
        yield problem("model.rs.selection", names, own)
    if until is None:
        return
    if until.accepted > until.max_rollouts:
        most = f"should be at most model.rs.until.max_rollouts = {until.max_rollouts}"
        yield problem("model.rs.until.accepted", until.accepted, most)
    if rs.sampling_params.use_greedy:
        yield problem("model.rs.sampling_params.use_greedy", True, "model.rs.until samples: set it to false")
    if rs.offline:
        yield problem("model.rs.offline", list(rs.offline), "nothing is sampled; leave model.rs.until out")
