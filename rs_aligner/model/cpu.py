"""What stands in for CUDA when Megatron runs on a CPU. Not imported where there is a GPU.

Megatron names the device "cuda" in its factories, asks `torch.cuda` for the current device, its
generator and its stream, and compares `tensor.type()` with the names of CUDA tensors. Rather than lie to all
of torch, `install` gives Megatron's own modules a copy of the `torch` namespace in which just
those few names mean the CPU; everything else in the process sees the real torch, and nothing is
slowed down. Apex's kernel that adds a weight's gradient to the sum has a stand-in, too, for layers that
are asked to use it. Two tensor methods cannot be replaced per module; `pretend` swaps them, for as long as
a model is built, or an optimizer is built, stepped, saved or loaded.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "empty_like", "zeros_like", "arange")


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    def build(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = _CPU
        return factory(*args, **kwargs)

    return build


def _namespace(original: types.ModuleType, **replaced: Any) -> types.ModuleType:
    """A copy of a module's namespace with some names replaced; late attributes come from the original."""
    copy = types.ModuleType(original.__name__)
    copy.__dict__.update(original.__dict__)
    copy.__dict__.update(replaced)
    copy.__dict__["__getattr__"] = lambda name: getattr(original, name)
    return copy


def _set_rng_state(state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(state)


def _get_rng_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _add_weight_gradient(inputs: torch.Tensor, grads: torch.Tensor, total: torch.Tensor) -> None:
    """Add `grads^T inputs`, `[T, out]` and `[T, in]`, to `total` `[out, in]`; in the product, if it can."""
    if inputs.dtype == grads.dtype == total.dtype:
        total.addmm_(grads.t(), inputs)
    else:
        total.add_(grads.t() @ inputs)


class _Stream:
    """The stream that there is: work is done when the call that asked for it returns."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, stream: _Stream) -> None: ...

    def synchronize(self) -> None: ...


_WEIGHT_GRADIENTS = types.SimpleNamespace(wgrad_gemm_accum_fp32=_add_weight_gradient)

_CUDA = _namespace(
    torch.cuda,
    current_device=lambda: _CPU,
    synchronize=lambda device=None: None,
    Stream=_Stream,
    current_stream=_Stream,
    get_rng_state=_get_rng_state,
    manual_seed=torch.manual_seed,
)
_TORCH = _namespace(torch, cuda=_CUDA, **{name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})


def install() -> None:
    """Give every Megatron module imported so far the CPU's view of torch. Safe to call again."""
    for late in ("torch", "filesystem_async", "state_dict_saver"):  # else imported at the first save
        importlib.import_module(f"megatron.core.dist_checkpointing.strategies.{late}")
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = _TORCH  # type: ignore[attr-defined]  # what `install` is for
    layers = sys.modules.get("megatron.core.tensor_parallel.layers")
    if layers is not None:
        layers.fused_weight_gradient_mlp_cuda = _WEIGHT_GRADIENTS  # type: ignore[attr-defined]  # the same
    rng = sys.modules.get("megatron.core.tensor_parallel.random")
    if rng is not None:
        rng._set_cuda_rng_state = _set_rng_state  # type: ignore[attr-defined]  # what `install` is for
        rng._get_cuda_rng_state = _get_rng_state  # type: ignore[attr-defined]  # what `install` is for


@contextmanager
def pretend() -> Iterator[None]:
    """Tensors name their type as their CUDA twins would, and `.cuda()` leaves them where they are."""
    type_of, to_cuda = torch.Tensor.type, torch.Tensor.cuda

    def cuda_type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is not None:
            return type_of(self, dtype, *args, **kwargs)
        return type_of(self).replace("torch.", "torch.cuda.", 1)

    install()
    torch.Tensor.type = cuda_type  # type: ignore[method-assign,assignment]  # what `pretend` is for
    # What `pretend` is for.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]  # stands in
    try:
        yield
    finally:
        torch.Tensor.type, torch.Tensor.cuda = type_of, to_cuda  # type: ignore[method-assign]  # put back
