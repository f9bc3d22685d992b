"""The engine for a GPU, or a CPU without a compiler: the decoding loop of `cohorts` on torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rs_aligner.generation.decoder import Engine, Offer, Wave
from rs_aligner.generation.rows import Ended
from rs_aligner.model.architecture import (
    EXPERTS,
    GEGLU,
    LAYER_NORM,
    LEARNT_POSITIONS,
    MLP_BIAS,
    NORMS_AFTER,
    PART_TURNED,
    PLAIN_MLP,
    PROJECTION_BIAS,
    QK_NORM,
    QKV_BIAS,
    RESIDUAL_SCALE,
    SCORE_CAP,
    UNIT_NORMS,
    WIDE_QK_NORM,
    WINDOW,
)

if TYPE_CHECKING:
    from rs_aligner.generation.network import Network

KNOWN = frozenset(
    {
        *(QKV_BIAS, QK_NORM, WIDE_QK_NORM, PROJECTION_BIAS, MLP_BIAS, EXPERTS),
        *(LAYER_NORM, LEARNT_POSITIONS, PLAIN_MLP),
        *(RESIDUAL_SCALE, NORMS_AFTER, WINDOW, PART_TURNED, SCORE_CAP, UNIT_NORMS, GEGLU),
    }
)


class TorchDecoder:
    """Decodes on torch, wherever the policy is.

    Args:
        network: the policy's forward pass.
        kv_cache_bytes: most bytes of keys and values on this rank; None for no bound.
    """

    description = "torch"
    is_served = False
    rows_stand_alone = False  # how a product sums depends on its shape

    def __init__(self, network: Network, kv_cache_bytes: int | None = None) -> None:
        self.network, self.kv_cache_bytes = network, kv_cache_bytes

    def prepare(self, version: int, *, now: bool = False) -> int:
        """As `Decoder.prepare`: torch reads the model's own weights."""
        return version

    def close(self, *, is_over: bool = False) -> None:
        """As `Decoder.close`: there is nothing to end."""

    def decode(self, wave: Wave) -> Iterator[Ended]:
        """As `Decoder.decode`."""
        from rs_aligner.generation.cohorts import CohortWave  # slow, and a plan does without

        return CohortWave(self.network, wave, self.kv_cache_bytes).run()


def _new(offer: Offer) -> TorchDecoder:
    from rs_aligner.generation.network import Network  # slow, and a plan does without

    network = Network(offer.model, offer.arch, offer.runtime, offer.allowed)
    return TorchDecoder(network, offer.config.kv_cache_bytes)


TORCH = Engine("torch", _new, declines=lambda ahead: ahead.unknown(KNOWN))
