"""A model with adapters: they alone are trained, beside its linear layers, and merged into them to decode.

The layers themselves stay where they are, frozen: no gradient, no place in DDP's buffers, no optimizer state.
To decode, the products are merged into the weights in place, and the base is kept and put back, bit for bit:
nothing is subtracted. Left out on purpose: adapters of embeddings and output layer; the modules
(`lora_layer.py`) and `peft`'s folders (`adapter_folder.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.models.gpt import GPTModel

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.host_memory import Copy, room_on_host
from rs_aligner.model.lora_layer import Adapter, Projection
from rs_aligner.model.lora_spec import LINEARS, LoraSpec, projections
from rs_aligner.model.runtime import Runtime

ATTRIBUTE = "adapter"
"""The name of an adapter in the linear layer that it belongs to."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of a model, by its name, is an adapter's."""
    return f".{ATTRIBUTE}." in name


class Adapters:
    """All adapters of this rank's part of a model, and the way between beside and merged.

    Args:
        model: this rank's part; what it has of adapters is found.
        arch: its architecture.
        runtime: of this rank.
        spec: what they are.

    Attributes:
        is_merged: whether the weights have them inside.
        is_exported_alone: whether an export is an adapter folder, and not a whole model.
    """

    def __init__(self, model: GPTModel, arch: Architecture, runtime: Runtime, spec: LoraSpec) -> None:
        self.model, self.arch, self.runtime, self.spec = model, arch, runtime, spec
        self._linears = [linear for _, _, linear in _linears(model) if hasattr(linear, ATTRIBUTE)]
        self._base: list[torch.Tensor] = []
        self._on_host: list[Copy] = []
        self.is_merged = self.is_exported_alone = False

    @torch.no_grad()
    def merge(self) -> None:
        """Let the layers' own weights be those of base and adapters together, until `restore`.

        The base is kept: on a GPU in the memory beside it, once for all, since it never changes; on a CPU it
        is set aside. Does nothing where they are merged.
        """
        if self.is_merged:
            return
        if self.runtime.device.type == "cpu":
            self._base = [linear.weight.data for linear in self._linears]
            for linear in self._linears:
                linear.weight.data = _merged(linear)
        else:
            self._keep_on_host()
            for linear in self._linears:
                linear.weight.data.copy_(_merged(linear))
        self._set_merged(True)

    def restore(self) -> None:
        """Take the adapters out of the weights again, which are then the very bits that they were."""
        if not self.is_merged:
            return
        if self.runtime.device.type == "cpu":
            for linear, base in zip(self._linears, self._base, strict=True):
                linear.weight.data = base
            self._base = []
        else:
            for linear, copy in zip(self._linears, self._on_host, strict=True):
                copy.restore(linear.weight.data)
        self._set_merged(False)

    def _keep_on_host(self) -> None:
        """Copy the base into the memory beside a GPU, the first time: it never changes."""
        if not self._on_host:
            weights = [linear.weight.data for linear in self._linears]
            self._on_host = room_on_host(weights)
            for copy, weight in zip(self._on_host, weights, strict=True):
                copy.save(weight)

    def _set_merged(self, value: bool) -> None:
        for linear in self._linears:
            getattr(linear, ATTRIBUTE).is_merged = value
        self.is_merged = value

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The weights are merged inside, and as before behind it."""
        before = self.is_merged
        self.merge()
        try:
            yield
        finally:
            if not before:
                self.restore()

    @torch.no_grad()
    def merge_for_good(self) -> None:
        """Make the model one without adapters, whose weights have them inside."""
        assert not self.is_merged
        for linear in self._linears:
            linear.weight.data.copy_(_merged(linear))
            linear.adapter_hook.remove()
            del linear.adapter_hook
            delattr(linear, ATTRIBUTE)
        for parameter in self.model.parameters():
            parameter.requires_grad_()
        self._linears = []

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter, int | None]]:
        """What is trained on this rank: name in the whole model, parameter, and the axis by which it is cut.

        The axis is None where every tensor-parallel rank has all of it. A reward model's head is among them.
        """
        first = self.runtime.pp_rank * (self.arch.num_layers // self.runtime.pp_size)
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            prefix, _, rest = name.partition("decoder.layers.")
            number, _, behind = rest.partition(".")
            known = f"{prefix}decoder.layers.{first + int(number)}.{behind}" if rest else name
            is_cut = getattr(parameter, "tensor_model_parallel", False)
            yield known, parameter, parameter.partition_dim if is_cut else None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What is trained, as it is on this rank."""
        return {name: parameter.data for name, parameter, _ in self.parameters()}

    def sharded_state_dict(self) -> dict[str, Any]:
        """What is trained, for a checkpoint of Megatron's, which loads in any layout."""
        runtime = self.runtime
        state = {}
        for name, parameter, axis in self.parameters():
            cut = [] if axis is None else [(axis, runtime.tp_rank, runtime.tp_size)]
            copy = runtime.tp_rank if axis is None else 0
            # The parameter itself: the optimizer's state is told by it.
            state[name] = ShardedTensor.from_rank_offsets(
                name, parameter, *cut, replica_id=(0, copy, runtime.dp_rank)
            )
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take what was loaded by `sharded_state_dict`."""
        self.restore()
        for name, parameter, _ in self.parameters():
            parameter.copy_(state[name])

    def by_matrix(self) -> Iterator[tuple[str, Projection, bool]]:
        """This rank's adapted matrices: name in `transformers`, adapter, whether it is cut by inputs."""
        layers = family_of(self.arch).layers
        first = self.runtime.pp_rank * (self.arch.num_layers // self.runtime.pp_size)
        for number, _, linear in _linears(self.model):
            adapter: Any = getattr(linear, ATTRIBUTE, None)
            for name in adapter.names if adapter is not None else ():
                if (part := adapter.part(name)) is not None:
                    yield layers.format(first + number) + name, part, adapter.by_rows


def _merged(linear: Any) -> torch.Tensor:
    weight = linear.weight.data
    merged: torch.Tensor = getattr(linear, ATTRIBUTE).product().add_(weight)
    return merged.to(weight.dtype)


def _linears(model: GPTModel, names: Collection[str] = LINEARS) -> Iterator[tuple[int, str, Any]]:
    """This rank's linear layers: number of the layer on this rank, name in it, Megatron's module."""
    for number, layer in enumerate(model.decoder.layers):
        modules = dict(layer.named_modules())
        for name in names:
            if name in modules:  # a mixture's experts are none of them
                yield number, name, modules[name]


def attach(model: GPTModel, arch: Architecture, runtime: Runtime, spec: LoraSpec, seed: int) -> Adapters:
    """Freeze a model and give it adapters, drawn anew; the same in every layout.

    A reward model's head stays as it is, and is trained.

    Args:
        model: this rank's part, with its weights.
        arch: its architecture.
        runtime: of this rank.
        spec: which adapters.
        seed: of what is drawn.

    Raises:
        ValueError: a matrix's sizes do not fit the layout.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(arch.value_head and name.startswith("output_layer."))
    family, matrices = family_of(arch), projections(arch)
    layouts = {name: family.layer(arch)[f"{name}.weight"].layout for name in matrices}
    first = runtime.pp_rank * (arch.num_layers // runtime.pp_size)
    for number, name, linear in _linears(model, matrices):
        by_rows = hasattr(linear, "input_is_parallel")
        parts: dict[str, Projection | None] = {}
        for matrix, (outputs, inputs) in matrices[name].items():
            parts[matrix] = None
            if matrix in spec.targets:
                known = family.layers.format(first + number) + matrix
                parts[matrix] = Projection(
                    _drawn((spec.settings.rank, inputs), spec.column_init, f"{known}.lora_A", seed),
                    _drawn((outputs, spec.settings.rank), spec.row_init, f"{known}.lora_B", seed),
                    "a" if by_rows else "b",
                    runtime,
                    linear.weight.dtype,
                    sums=model.config.sequence_parallel,
                    blocks=layouts[name].blocks,
                )
        if not any(parts.values()):
            continue
        cut = 1 if by_rows else runtime.tp_size
        linear.adapter = Adapter(
            parts,
            [size // cut for size in layouts[name].blocks or [shape[0] for shape in matrices[name].values()]],
            layouts[name].groups // cut if layouts[name].groups > 1 else 1,
            scale=spec.settings.scale,
            by_rows=by_rows,
            sequence_parallel=model.config.sequence_parallel,
            tp_size=runtime.tp_size,
        )
        linear.adapter_hook = linear.register_forward_hook(_add)
    return Adapters(model, arch, runtime, spec)


def _add(linear: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
    """What the layer returns, with the adapter's output added, unless it is in the weights."""
    adapter = getattr(linear, ATTRIBUTE)
    if adapter.is_merged:
        return output
    plain, bias = output
    return plain + adapter(inputs[0]), bias


def _drawn(shape: tuple[int, int], how: str, name: str, seed: int) -> torch.Tensor:
    """A whole matrix as it begins, by its name and the seed: the same on every rank of every layout."""
    matrix = torch.empty(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
    if how == "xavier":
        return torch.nn.init.xavier_normal_(matrix, generator=generator)
    if how == "kaiming":
        return torch.nn.init.kaiming_uniform_(matrix, a=5**0.5, generator=generator)
    if how == "normal":
        return matrix.normal_(0.0, 0.2, generator=generator)
    return matrix.zero_()
