"""The engine for a CPU: the decoding loop of `paged` on compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator

from rs_aligner.generation.decoder import Engine, Offer, Wave
from rs_aligner.generation.native import load_kernels
from rs_aligner.generation.native_network import NativeNetwork
from rs_aligner.generation.paged import PagedWave
from rs_aligner.generation.rows import Ended
from rs_aligner.model.architecture import QK_NORM, QKV_BIAS

KNOWN = frozenset({QKV_BIAS, QK_NORM})


class KernelDecoder:
    """Decodes on kernels compiled for this CPU.

    Args:
        network: the policy's forward pass.
        kv_cache_bytes: most bytes of keys and values on this rank; None for no bound.
    """

    rows_stand_alone = True  # each product sums in an order of its own, whatever stands beside it

    def __init__(self, network: NativeNetwork, kv_cache_bytes: int | None = None) -> None:
        self.network, self.kv_cache_bytes = network, kv_cache_bytes

    @property
    def description(self) -> str:
        """What decodes, and who compiled it."""
        kernels = self.network.kernels
        took = f"compiled in {kernels.seconds:.1f} s" if kernels.seconds else "compiled before"
        return f"kernels for this CPU, {took} by {kernels.compiler}"

    def decode(self, wave: Wave) -> Iterator[Ended]:
        """As `Decoder.decode`."""
        return PagedWave(self.network, wave, self.kv_cache_bytes).run()


def _new(offer: Offer) -> KernelDecoder:
    offer.require(KNOWN)
    arch = offer.arch
    kernels = load_kernels(arch.head_dim, arch.num_heads // arch.num_kv_heads)
    network = NativeNetwork(offer.model, arch, offer.runtime, kernels, offer.allowed)
    return KernelDecoder(network, offer.config.kv_cache_bytes)


KERNELS = Engine("kernels", lambda config, device: config.compile and device.type == "cpu", _new)
