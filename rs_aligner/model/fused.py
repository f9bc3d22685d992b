"""A norm and an activation in one pass each, forward and backward; by torch where there are no kernels.

Torch makes a pass over memory, and often a copy, of every multiplication in them. Left out on purpose: which
modules they are of (`modules.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from rs_aligner.model import native
from rs_aligner.model.native import Kernels, address


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, kernels: Kernels | None) -> torch.Tensor:
    """`x` over the root of its mean square along the last dimension, times `weight`.

    Source: Zhang and Sennrich, "Root mean square layer normalization" (2019), equation 4.
    """
    if kernels is None or not native.fitting(x, weight):
        return functional.rms_norm(x, weight.shape, weight, eps)
    normed: torch.Tensor = _Norm.apply(x.contiguous(), weight, eps, kernels)
    return normed


def swiglu(x: torch.Tensor, kernels: Kernels | None) -> torch.Tensor:
    """`silu(gate) * up` of `x` `[..., 2 F]`, gate first: `[..., F]`.

    Source: Shazeer, "GLU variants improve transformer" (2020), equation 6.
    """
    if kernels is None or not native.fitting(x):
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up
    active: torch.Tensor = _SwiGLU.apply(x.contiguous(), kernels)
    return active


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, kernels: Kernels
    ) -> torch.Tensor:
        width = x.shape[-1]
        rows, out = x.numel() // width, torch.empty_like(x)
        inverse = x.new_empty(rows)
        kernels.norm(*map(address, (x, weight, out, inverse)), rows, width, eps, torch.get_num_threads())
        ctx.save_for_backward(x, weight, inverse)
        ctx.kernels = kernels
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        grad, dx = grads[0].contiguous(), torch.empty_like(x)
        width = x.shape[-1]
        partial = x.new_empty(native.PARTS, width)
        ctx.kernels.norm_backward(
            *map(address, (x, weight, inverse, grad, dx, partial)),
            *(len(inverse), width, torch.get_num_threads()),
        )
        return dx, partial.sum(0), None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kernels: Kernels) -> torch.Tensor:
        width = x.shape[-1] // 2
        out = x.new_empty(*x.shape[:-1], width)
        kernels.swiglu(address(x), address(out), out.numel() // width, width, torch.get_num_threads())
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        grad, dx = grads[0].contiguous(), torch.empty_like(x)
        width = grad.shape[-1]
        ctx.kernels.swiglu_backward(
            *map(address, (x, grad, dx)), grad.numel() // width, width, torch.get_num_threads()
        )
        return dx, None
