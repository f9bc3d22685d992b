"""Which activations of a training are kept for the backward pass, and which are computed again in it.

Key names are NeMo-Aligner's. Left out on purpose: keeping activations in the CPU's memory, and what the keys
come to in bytes (`model/memory.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rs_aligner.config.base import Count, problem
from rs_aligner.config.layout import LayoutBase

_logger = logging.getLogger("rs_aligner")

Granularity = Literal["selective", "full"]
Method = Literal["uniform", "block"]


@dataclass(frozen=True, slots=True)
class Recompute:
    """What is computed again in the backward pass.

    Attributes:
        granularity: `selective`: the inside of each MLP; `full`: whole layers.
        method: `uniform`: all layers, in chunks of `num_layers`, of each of which the input is kept; `block`:
            the first `num_layers` of a stage, one by one. Plays no part where it is selective.
        num_layers: see `method`.
    """

    granularity: Granularity
    method: Method = "uniform"
    num_layers: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """As Megatron's `TransformerConfig` names them."""
        if self.granularity == "selective":
            # Megatron's own choice, the scores of attention, is no choice here: the kernels keep none.
            return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
        return {
            "recompute_granularity": "full",
            "recompute_method": self.method,
            "recompute_num_layers": self.num_layers,
        }

    def again(self, layers: int) -> int:
        """How many of a stage's layers are computed again whole."""
        if self.granularity == "selective":
            return 0
        return layers if self.method == "uniform" else min(layers, self.num_layers)


class RecomputedBase(LayoutBase):
    """A model that is trained, with as many of its activations as there is room for."""

    activations_checkpoint_granularity: Granularity | None = None
    """What the backward pass computes again instead of keeping it: `selective`, the inside of each MLP (half
    of the activations, for a sixth more time); `full`, whole layers (all but their inputs, for a third more);
    null keeps all."""
    activations_checkpoint_method: Method | None = None
    """With `full`: `uniform` (all layers; as null) or `block` (the first ones of each pipeline stage)."""
    activations_checkpoint_num_layers: Count | None = None
    """With `full`: layers of a chunk (`uniform`) or of a stage (`block`); null is 1."""

    @property
    def recompute(self) -> Recompute | None:
        """What is computed again; None where all is kept."""
        granularity = self.activations_checkpoint_granularity
        if granularity is None:
            return None
        if granularity == "selective":
            return Recompute(granularity)
        method = self.activations_checkpoint_method or "uniform"
        return Recompute(granularity, method, self.activations_checkpoint_num_layers or 1)

    def problems(self, key: str) -> Iterator[str]:
        """What plays no part is told, as NeMo-Aligner's configs set it all the same."""
        yield from super().problems(key)
        if self.activations_checkpoint_granularity == "full":
            return
        for name in ("method", "num_layers"):
            if (value := getattr(self, f"activations_checkpoint_{name}")) is not None:
                full = f"it goes with {key}.activations_checkpoint_granularity=full"
                _logger.warning("%s.activations_checkpoint_%s=%s has no effect: %s", key, name, value, full)

    def misfits(self, key: str, made: Mapping[str, Any]) -> Iterator[str]:
        """The layers of a stage come in whole chunks."""
        yield from super().misfits(key, made)
        layers, again = made.get("num_hidden_layers"), self.recompute
        if not isinstance(layers, int) or layers % self.pipeline_model_parallel_size or again is None:
            return
        layers //= self.pipeline_model_parallel_size
        name = f"{key}.activations_checkpoint_num_layers"
        if again.method == "uniform" and layers % again.num_layers:
            yield problem(name, again.num_layers, f"should divide the {layers} layers of a pipeline stage")
        elif again.num_layers > layers:
            yield problem(name, again.num_layers, f"a pipeline stage has only {layers} layers")
