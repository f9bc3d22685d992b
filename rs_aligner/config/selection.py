"""`model.rs.selection`: the selectors and filters that may stand in a chain."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rs_aligner.config.base import Count, Section


class TopKConfig(Section):
    """The best of each prompt."""

    name: Literal["topk"]
    k: Count | None = None
    """How many of a prompt; null is `model.rs.top_n_rollouts`."""


SelectorConfig = Annotated[TopKConfig, Field()]
