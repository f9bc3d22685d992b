"""The engine for a CPU: the decoding loop of `paged` on compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rs_aligner.generation.decoder import Ahead, Engine, Offer, Wave
from rs_aligner.generation.native import lacks, load_kernels
from rs_aligner.generation.rows import Ended
from rs_aligner.model.architecture import QK_NORM, QKV_BIAS, WINDOW
from rs_aligner.model.compiled import processor

if TYPE_CHECKING:
    from rs_aligner.generation.native_network import NativeNetwork

KNOWN = frozenset({QKV_BIAS, QK_NORM, WINDOW})
PRODUCTS_OF_BF16 = ("avx512_bf16", "amx_bf16")
TORCH_WIDTH = 768
"""From here on torch decodes bf16 faster than the kernels on a processor with such products.

Torch's milliseconds over the kernels' for 16 and 128 rollouts at once, with `avx512_bf16` alone: 1.16 and
0.99 at 512, 0.87 and 0.79 at 768 (`benchmarks/results`); with AMX 0.5 at 768, the narrowest model measured.
"""


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

    def prepare(self, version: int, *, now: bool = False) -> int:
        """As `Decoder.prepare`: the kernels read the model's own weights."""
        return version

    def close(self, *, is_over: bool = False) -> None:
        """As `Decoder.close`: there is nothing to end."""

    def decode(self, wave: Wave) -> Iterator[Ended]:
        """As `Decoder.decode`."""
        from rs_aligner.generation.paged import PagedWave  # slow, and a plan does without

        return PagedWave(self.network, wave, self.kv_cache_bytes).run()


def _passed_over(ahead: Ahead) -> str | None:
    """On a CPU it is not, but for wide models in bf16 where the processor has products of bf16.

    It depends on the processor and on shapes only, so that a run that goes on decodes as before.
    """
    if ahead.on_gpu:
        return _FOR_CPUS
    if ahead.bf16 and ahead.arch.hidden_size >= TORCH_WIDTH:
        flags = processor().split()
        if flag := next((flag for flag in PRODUCTS_OF_BF16 if flag in flags), None):
            return f"torch is faster in bf16 from a width of {TORCH_WIDTH} on a processor with {flag}"
    return None


def _declines(ahead: Ahead) -> str | None:
    if ahead.on_gpu:
        return _FOR_CPUS
    arch = ahead.arch
    return ahead.unknown(KNOWN) or lacks(arch.head_dim, arch.num_heads // arch.num_kv_heads)


def _new(offer: Offer) -> KernelDecoder:
    from rs_aligner.generation.native_network import NativeNetwork  # slow, and a plan does without

    arch = offer.arch
    kernels = load_kernels(arch.head_dim, arch.num_heads // arch.num_kv_heads)
    network = NativeNetwork(offer.model, arch, offer.runtime, kernels, offer.allowed)
    return KernelDecoder(network, offer.config.kv_cache_bytes)


_FOR_CPUS = "they are for CPUs"
KERNELS = Engine("kernels", _new, _passed_over, _declines, cached_bytes=lambda ahead: 4)
