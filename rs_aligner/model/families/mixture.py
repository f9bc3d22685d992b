"""What a mixture of experts has in the place of an MLP: how a config says it, its tensors, Megatron's layer.

A family's names of its tensors are a table (`Mixture`); all else is the same in each. Left out on purpose:
experts that every token passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.model.architecture import Architecture, Experts
from rs_aligner.model.families.base import Config, Only, Part, Parts
from rs_aligner.model.layouts import COLUMNS, GATED, REPLICATED

if TYPE_CHECKING:
    from megatron.core.transformer import ModuleSpec


_SHARED = (Only("output_router_logits", (True, False), absent=False),)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A family's experts.

    Attributes:
        router: the router's tensor, behind the layer's name.
        gate, up, down: those of expert `{}`.
        number: the keys of a config that say how many experts there are, the newest first.
        size: the key that says how large each is.
        only: what of the config is supported.
        normalises: the key that says whether what the chosen experts count adds up to 1; None where it does.
        has_dense: whether some layers may have an MLP, by `mlp_only_layers` and `decoder_sparse_step`.
    """

    router: str
    gate: str
    up: str
    down: str
    number: tuple[str, ...]
    size: str
    only: tuple[Only, ...] = ()
    normalises: str | None = None
    has_dense: bool = False

    def read(self, path: Path, config: Config) -> Experts:
        """The experts of a config.

        Raises:
            ValueError: a number that is none, or something that is not supported.
        """
        for one in (*_SHARED, *self.only):
            one.check(path, config)
        named = {key: config[key] for key in self.number if config.get(key) is not None}
        if len(set(named.values())) > 1:
            said = " and ".join(f"{key} {value!r}" for key, value in named.items())
            raise ValueError(f"{path}: {said} say the same and differ")
        number = _whole(path, next(iter(named), self.number[0]), config)
        per_token = _whole(path, "num_experts_per_tok", config)
        if per_token > number:
            raise ValueError(
                f"{path}: num_experts_per_tok {per_token} is more than the model's {number} experts"
            )
        normalises = True
        if self.normalises is not None:
            Only(self.normalises, (True, False), absent=False).check(path, config)
            normalises = config.get(self.normalises, False)
        _whole(path, self.size, config)
        return Experts(number, per_token, normalises, _balance(path, config))

    def dense(self, path: Path, config: Config) -> frozenset[int]:
        """The layers of a config that have an MLP in the place of experts.

        As `transformers` has it: those of `mlp_only_layers`, and all but every `decoder_sparse_step`th.

        Raises:
            ValueError: one of the two keys is not such, or no layer is left that has experts.
        """
        if not self.has_dense:
            return frozenset()
        named, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step", 1)
        if not isinstance(named, list) or any(type(one) is not int for one in named):
            raise ValueError(f"{path}: mlp_only_layers {named!r} is not supported; a list of layers is")
        if type(step) is not int or step < 1:
            raise ValueError(
                f"{path}: decoder_sparse_step {step!r} is not supported; a whole number above 0 is"
            )
        layers = range(config["num_hidden_layers"])
        found = frozenset(layer for layer in layers if layer in named or (layer + 1) % step)
        if len(found) == len(layers):
            raise ValueError(
                f"{path}: with mlp_only_layers {named!r} and decoder_sparse_step {step} none of its "
                f"{len(layers)} layers has experts: that is not supported; at least one layer with them is"
            )
        return found

    def parts(self, arch: Architecture) -> Parts:
        """The parts that a layer has in the place of an MLP's."""
        assert arch.experts is not None
        width, inner = arch.hidden_size, arch.intermediate_size
        router = Part({self.router: (arch.experts.number, width)}, REPLICATED)
        parts = {"mlp.router.weight": router}
        for number in range(arch.experts.number):
            gated = {name.format(number): (inner, width) for name in (self.gate, self.up)}
            down = {self.down.format(number): (width, inner)}
            expert = EXPERT.format(number)
            parts[f"{expert}linear_fc1.weight"] = Part(gated, GATED)
            parts[f"{expert}linear_fc2.weight"] = Part(down, COLUMNS)
        return parts


EXPERT = "mlp.experts.local_experts.{}."
"""What the names of an expert's parameters begin with in Megatron's layer; `{}` is its number on the rank."""


def _balance(path: Path, config: Config) -> float:
    """The coefficient of the routers' loss, which `transformers` adds where their logits are asked for."""
    value = config.get("router_aux_loss_coef", 0.001)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(
            f"{path}: router_aux_loss_coef {value!r} is not supported; a number of at least 0 is"
        )
    return float(value) if config.get("output_router_logits") else 0.0


def is_expert(name: str) -> bool:
    """Whether a parameter of Megatron's layer is an expert's."""
    return name.startswith(EXPERT.partition("{}")[0])


def _whole(path: Path, key: str, config: Config) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path}: {key} {value!r} is not supported; a whole number above 0 is")
    return value


def megatron_settings(arch: Architecture) -> dict[str, Any]:
    """What of Megatron's `TransformerConfig` the experts decide."""
    if arch.experts is None:
        return {}
    dense = [kind.mlp for kind in arch.kinds if kind.mlp is not None]
    pattern = [int(arch.at(layer).experts is not None) for layer in range(arch.num_layers)]
    return {
        # The list makes checkpoints name each layer, where like ones are one tensor with an axis of layers.
        **({"ffn_hidden_size": dense[0], "moe_layer_freq": pattern} if dense else {}),
        "num_moe_experts": arch.experts.number,
        "moe_router_topk": arch.experts.per_token,
        "moe_ffn_hidden_size": arch.intermediate_size,
        "moe_router_pre_softmax": True,  # it insists where one expert is chosen; the router is ours
        "moe_router_load_balancing_type": "none",
    }


def with_experts(layer: ModuleSpec, arch: Architecture) -> ModuleSpec:
    """Megatron's layer, whose MLP is an expert, with a mixture of such in its place."""
    from rs_aligner.model.experts import mixture_of
    from rs_aligner.model.modules import parts_of

    assert arch.experts is not None
    layer.submodules.mlp = mixture_of(arch.experts, parts_of(layer.submodules.mlp))
    return layer
