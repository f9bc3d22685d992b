"""LoRA (Hu et al., 2021) on Megatron's linear layers: `W x + scale B (A x)`, of which A and B are trained.

A layer that is made of several matrices (queries, keys and values; gate and up) has an A and a B for each
that is adapted, as `peft` has them; where they are one tensor in `transformers`, one A for all. Where the
layer is cut by its outputs, so is B, and A is whole on every rank; where it is cut by its inputs, so is A,
and B is whole. What passes between the two, `r` numbers a token, is all that travels. Left out on
purpose: dropout, DoRA, and how adapters come to a model (`lora.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch.nn import functional

from rs_aligner.model.runtime import Runtime


class Projection(torch.nn.Module):
    """This rank's part of one matrix's adapter: `a` `[r, in]`, and of `b` `[out, r]` each block of rows.

    Args:
        a, b: the whole matrices, the same on every rank.
        blocks: rows of each of the matrices that are below each other in this one; none where it is one.
        split: of which of the two a tensor-parallel rank has a part: "a" or "b".
        runtime: of this rank.
        dtype: of the parameters.
        sums: whether the gradient of the whole one is to be added up over the tensor-parallel ranks: under
            sequence parallelism each has seen other tokens.
    """

    def __init__(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        split: str,
        runtime: Runtime,
        dtype: torch.dtype,
        *,
        sums: bool,
        blocks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.blocks = list(blocks) or [len(b)]
        self._names = ["b"] if len(self.blocks) == 1 else [f"b{number}" for number in range(len(self.blocks))]
        parts = zip(self._names, b.split(self.blocks), strict=True)
        for name, whole, axis in (("a", a, 1), *((name, block, 0) for name, block in parts)):
            is_split = name[0] == split
            mine = whole.chunk(runtime.tp_size, axis)[runtime.tp_rank] if is_split else whole
            parameter = torch.nn.Parameter(mine.to(runtime.device, dtype).contiguous().clone())
            set_tensor_model_parallel_attributes(
                parameter, is_parallel=is_split, dim=axis if is_split else -1, stride=1
            )
            # Megatron reads this mark on parameters, which torch's type has not.
            parameter.sequence_parallel = sums and not is_split  # type: ignore[attr-defined]  # Megatron's mark
            self.register_parameter(name, parameter)

    a: torch.nn.Parameter

    @property
    def bs(self) -> list[torch.nn.Parameter]:
        """The blocks of `b`, each cut for itself."""
        return [self.get_parameter(name) for name in self._names]


class Adapter(torch.nn.Module):
    """What is learnt beside one of Megatron's linear layers.

    Args:
        parts: by matrix, in the layer's order; None for one that is not adapted.
        sizes: this rank's outputs of each matrix, or of each of the blocks of the only one.
        groups: in how many groups their outputs are interleaved on this rank.
        scale: how many times it counts.
        by_rows: whether the layer is cut by its inputs (Megatron's row parallelism) and not by its outputs.
        sequence_parallel: whether activations around the layer are split along the sequence.
        tp_size: ranks that share the layer.

    Attributes:
        is_merged: whether the layer's weights have it inside, so that nothing is to be added.
    """

    def __init__(
        self,
        parts: dict[str, Projection | None],
        sizes: Sequence[int],
        groups: int,
        *,
        scale: float,
        by_rows: bool,
        sequence_parallel: bool,
        tp_size: int,
    ) -> None:
        super().__init__()
        self.names, self.sizes, self.groups = list(parts), list(sizes), groups
        self.scale, self.by_rows, self.tp_size = scale, by_rows, tp_size
        self.sequence_parallel = sequence_parallel
        self.is_merged = False
        for name, part in parts.items():
            if part is not None:
                self.add_module(_as_attribute(name), part)

    def part(self, name: str) -> Projection | None:
        """The adapter of a matrix, if it has one."""
        return getattr(self, _as_attribute(name), None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the layer's output, from its input, both as the layer has them on this rank."""
        parts = [self.part(name) for name in self.names]
        found = [part for part in parts if part is not None]
        a = torch.cat([part.a for part in found]) if len(found) > 1 else found[0].a
        low = iter(self._between(functional.linear(x, a) * self.scale).chunk(len(found), -1))
        outputs: list[torch.Tensor | None] = []
        for part in parts:
            if part is None:
                outputs.append(None)
            else:
                between = next(low)
                outputs += [functional.linear(between, b) for b in part.bs]
        return self._side_by_side(outputs, -1)

    def _between(self, low: torch.Tensor) -> torch.Tensor:
        """`A x`, of which ranks have parts, as `B` needs it."""
        if self.tp_size == 1:
            return low
        if self.by_rows:
            if self.sequence_parallel:
                return reduce_scatter_to_sequence_parallel_region(low)
            return reduce_from_tensor_model_parallel_region(low)
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(low)
        return copy_to_tensor_model_parallel_region(low)

    def _side_by_side(self, outputs: Sequence[torch.Tensor | None], axis: int) -> torch.Tensor:
        """The matrices' outputs along an axis as the layer has them, zero where there is no adapter."""
        if len(outputs) == 1 and outputs[0] is not None:
            return outputs[0]
        some = next(output for output in outputs if output is not None)
        axis %= some.dim()

        def whole(output: torch.Tensor | None, size: int) -> torch.Tensor:
            if output is not None:
                return output
            return some.new_zeros((*some.shape[:axis], size, *some.shape[axis + 1 :]))

        grouped = [
            whole(output, size).unflatten(axis, (self.groups, -1))
            for output, size in zip(outputs, self.sizes, strict=True)
        ]
        return torch.cat(grouped, axis + 1).flatten(axis, axis + 1)

    @torch.no_grad()
    def product(self) -> torch.Tensor:
        """`scale B A` in float32, as the layer's weights are laid out on this rank."""
        products: list[torch.Tensor | None] = []
        for part in (self.part(name) for name in self.names):
            products += [None] if part is None else [b.float() @ part.a.float() for b in part.bs]
        return self._side_by_side(products, 0).mul_(self.scale)


def _as_attribute(name: str) -> str:
    return name.rpartition(".")[2]
