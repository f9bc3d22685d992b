"""Modules of our own in Megatron's layers: norms, layers with biases, a reward model's head. Not attention.

Megatron's local layer spec needs no further package. Its norms refuse sequence parallelism, so they are
replaced by such as mark their weights as sequence-parallel.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.nn import functional

from rs_aligner.model.fused import rms_norm, swiglu
from rs_aligner.model.native import kernels_of


def parts_of(spec: ModuleSpec | functools.partial[Any]) -> Any:
    """The parts of one of Megatron's specs, to be replaced: of an MLP it is a partial function since 0.18."""
    return spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules


class RMSNorm(torch.nn.Module):
    """Root mean square norm over the last dimension (Zhang and Sennrich, 2019), sequence-parallel aware."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps, self.kernels = eps, kernels_of(config)
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Megatron reads it off a parameter.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # Megatron's mark

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden, self.weight, self.eps, self.kernels)


class LayerNorm(torch.nn.LayerNorm):
    """Ba et al., "Layer normalization" (2016), over the last dimension; sequence-parallel aware."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps, dtype=config.params_dtype)
        for parameter in self.parameters():
            # Megatron reads it off a parameter.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # Megatron's mark


class UnitNorm(RMSNorm):
    """Root mean square norm that multiplies by one and a weight (Gemma team, 2024), in float32."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = rms_norm(hidden.float(), 1 + self.weight.float(), self.eps, self.kernels)
        return normed.to(hidden.dtype)


class WideNorm(torch.nn.Module):
    """Root mean square norm over all heads of a token together, of which a tensor-parallel rank has some.

    Source: OLMo team, "2 OLMo 2 furious" (2024), section 3.2.

    Args:
        config: the model's.
        heads: of the whole model.
        hidden_size: of a head.
        eps: what is added to the mean square.
    """

    def __init__(
        self, config: TransformerConfig, heads: int, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__()
        self.eps, self.kernels, self.ranks = eps, kernels_of(config), config.tensor_model_parallel_size
        mine = torch.ones(heads // self.ranks * hidden_size, dtype=config.params_dtype)
        self.weight = torch.nn.Parameter(mine)
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """`[..., heads, dim]`, the heads in one dimension or by groups in two, to the same."""
        axis = -2 if heads.shape[-2:].numel() == len(self.weight) else -3
        flat = heads.flatten(axis)
        if self.ranks == 1:
            normed = rms_norm(flat, self.weight, self.eps, self.kernels)
        else:
            squares = flat.float().square().sum(-1, keepdim=True)
            # Each rank's share of the sum is in every rank's numbers, so its gradient comes from all of them.
            squares = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(squares))
            root = torch.rsqrt(squares / (self.ranks * flat.shape[-1]) + self.eps)
            normed = (flat.float() * root).to(flat.dtype) * self.weight
        return normed.view(heads.shape)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For a checkpoint of Megatron's, which else takes what it does not know for whole on every rank."""
        state = self.state_dict(prefix="", keep_vars=True)
        found: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            state, prefix, {"weight": 0}, sharded_offsets
        )
        return found


class BiasedColumns(ColumnParallelLinear):
    """A layer cut by its outputs that has a bias; Megatron's setting gives one to all layers or to none."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **{**how, "bias": True})


class BiasedRows(RowParallelLinear):
    """A layer cut by its inputs that has a bias, added once."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **{**how, "bias": True})


class BiasedMLP(MLP):
    """An MLP that adds its last bias itself, and does not hand it on.

    A parameter that comes out of what the backward pass computes again (`recompute_modules: [mlp]`) would be
    made a part of its graph by autograd, and each step's graph be kept for the next.
    """

    def forward(self, hidden_states: torch.Tensor, *args: Any, **how: Any) -> tuple[torch.Tensor, None]:
        output, bias = super().forward(hidden_states, *args, **how)
        return output if bias is None else output + bias, None

    @classmethod
    def in_place_of(cls, spec: ModuleSpec | functools.partial[Any]) -> ModuleSpec | functools.partial[Any]:
        """Megatron's spec of an MLP as one of this; since 0.18 it is a partial function of a class method."""
        if isinstance(spec, functools.partial):
            return functools.partial(getattr(cls, spec.func.__name__), *spec.args, **spec.keywords)
        spec.module = cls
        return spec


class SwiGLU(torch.nn.Module):
    """What stands between an MLP's two layers: `[..., 2 F]`, gate first, to `[..., F]`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.kernels = kernels_of(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return swiglu(hidden, self.kernels)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing to save; Megatron asks every part of an MLP."""
        return {}


class GEGLU(SwiGLU):
    """The same with a GELU by its tanh: `[..., 2 F]`, gate first, to `[..., F]`.

    Source: Shazeer, "GLU variants improve transformer" (2020), equation 6.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        return functional.gelu(gate, approximate="tanh") * up


class ValueHead(torch.nn.Module):
    """One number for each position, `[S, B, 1]`: a linear map without bias, whole on every rank.

    Called as Megatron calls an output layer. Every tensor-parallel rank computes all of it from the
    same hidden states, so each has the whole gradient and nothing needs to be summed.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(torch.zeros(1, config.hidden_size, dtype=config.params_dtype))

    def initialise(self, seed: int) -> None:
        """Draw new weights, the same on every rank: normal with variance 1 / (width + 1).

        Source: Stiennon et al., "Learning to summarize from human feedback" (2020), appendix B.1.
        """
        numbers = torch.randn(self.weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.weight.copy_(numbers / (self.weight.shape[1] + 1) ** 0.5)

    def forward(
        self, hidden: torch.Tensor, weight: None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, None]:
        if self.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        # In float32: bf16 has 8 bits for a number, and answers that differ would get the same reward.
        return functional.linear(hidden.float(), self.weight.float()), None
