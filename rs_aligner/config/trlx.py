"""`model.rs.rft`: trlX's rejection fine-tuning by its own names.

They stand for keys of the other sections, so that there is one way through the code. Left out on purpose:
NeMo-Aligner's names (`upstream.py`), and what keys are called elsewhere (`aliases.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from rs_aligner.config.base import Count, Section, Share
from rs_aligner.config.pools import PoolConfig
from rs_aligner.config.sampling import LengthParams, SamplingParams
from rs_aligner.config.selection import DuplicatesConfig, PercentileConfig

_logger = logging.getLogger("rs_aligner")
GEN_KWARGS = ("max_new_tokens", "temperature", "top_k", "top_p", "do_sample")
"""What of trlX's `gen_kwargs` is read."""


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
