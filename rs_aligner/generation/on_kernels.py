"""The engine for a CPU: the decoding loop of `paged` on compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rs_aligner.generation.decoder import CannotDecode, Engine, Offer, Wave
from rs_aligner.generation.native import load_kernels
from rs_aligner.generation.native_network import NativeNetwork
from rs_aligner.generation.paged import PagedWave
from rs_aligner.generation.rows import Ended
from rs_aligner.model.architecture import QK_NORM, QKV_BIAS
from rs_aligner.model.compiled import processor

KNOWN = frozenset({QKV_BIAS, QK_NORM})
AMX_WIDTH = (
    768  # the narrowest model that was measured: 0.63 of torch's and 1.25 of the kernels' milliseconds
)


class KernelDecoder:
    """Decodes on kernels compiled for this CPU.

    Args:
        network: the policy's forward pass.
        kv_cache_bytes: most bytes of keys and values on this rank; None for no bound.
    """

    is_served = False
    rows_stand_alone = True  # each product sums in an order of its own, whatever stands beside it

    def __init__(self, network: NativeNetwork, kv_cache_bytes: int | None = None) -> None:
        self.network, self.kv_cache_bytes = network, kv_cache_bytes

    @property
    def description(self) -> str:
        """What decodes, and who compiled it."""
        kernels = self.network.kernels
        took = f"compiled in {kernels.seconds:.1f} s" if kernels.seconds else "compiled before"
        return f"kernels for this CPU, {took} by {kernels.compiler}"

    def prepare(self, version: int) -> int:
        """As `Decoder.prepare`: the kernels read the model's own weights."""
        return version

    def decode(self, wave: Wave) -> Iterator[Ended]:
        """As `Decoder.decode`."""
        return PagedWave(self.network, wave, self.kv_cache_bytes).run()


def _is_meant(offer: Offer) -> bool:
    """On a CPU, but for wide models in bf16 where it has AMX: there torch's products are twice as fast.

    It depends on the processor and on shapes only, so that a run that goes on decodes as before.
    """
    if offer.runtime.device.type != "cpu":
        return False
    in_bf16 = next(offer.model.parameters()).dtype == torch.bfloat16
    return not (in_bf16 and offer.arch.hidden_size >= AMX_WIDTH and "amx_bf16" in processor().split())


def _new(offer: Offer) -> KernelDecoder:
    if offer.runtime.device.type != "cpu":
        raise CannotDecode("they are for CPUs")
    offer.require(KNOWN)
    arch = offer.arch
    kernels = load_kernels(arch.head_dim, arch.num_heads // arch.num_kv_heads)
    network = NativeNetwork(offer.model, arch, offer.runtime, kernels, offer.allowed)
    return KernelDecoder(network, offer.config.kv_cache_bytes)


KERNELS = Engine("kernels", _is_meant, _new)
