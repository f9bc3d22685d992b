"""Which matrices of a model have adapters, and how many parameters that makes; without torch.

Names of the config are NeMo-Aligner's, for Megatron's linear layers, or those of single matrices as
`transformers` and `peft` have them. Left out on purpose: embeddings and output layer, which have no adapters
(tied ones could not have: one matrix would be two).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.tensors import num_parameters
from rs_aligner.peft_folder import AdapterSettings

TARGETS = "model.peft.lora_tuning.target_modules"
_QKV, _DENSE = "self_attention.linear_qkv", "self_attention.linear_proj"
_FC1, _FC2 = "mlp.linear_fc1", "mlp.linear_fc2"
LINEARS = (_QKV, _DENSE, _FC1, _FC2)
"""Megatron's linear layers of a transformer layer, by their names in it."""
ROW_PARALLEL = (_DENSE, _FC2)
"""Those that tensor parallelism cuts by their inputs, and not by their outputs."""

_GROUPS = {
    "attention_qkv": (_QKV,),
    "attention_dense": (_DENSE,),
    "mlp_fc1": (_FC1,),
    "mlp_fc2": (_FC2,),
    "attention": (_QKV, _DENSE),
    "mlp": (_FC1, _FC2),
    "all": LINEARS,
    "all-linear": LINEARS,
}


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """The adapters of a model.

    Attributes:
        settings: rank and scale.
        targets: the adapted matrices of a layer, by their names in `transformers` behind the layer's, such
            as `self_attn.q_proj`, in the model's order.
        column_init, row_init: how A and B begin.
    """

    settings: AdapterSettings
    targets: tuple[str, ...]
    column_init: str = "xavier"
    row_init: str = "zero"


def projections(arch: Architecture) -> dict[str, dict[str, tuple[int, ...]]]:
    """The matrices that Megatron's linear layers of a layer are made of: names, and shapes `[out, in]`.

    Names are those of `transformers` behind the layer's, without `.weight`.
    """
    layer = family_of(arch).layer(arch)
    found = {linear: layer[f"{linear}.weight"] for linear in LINEARS if f"{linear}.weight" in layer}
    return {
        linear: {
            name.removesuffix(".weight"): shape[::-1] if part.layout.is_transposed else shape
            for name, shape in part.tensors.items()
        }
        for linear, part in found.items()
    }


def is_transposed(arch: Architecture) -> bool:
    """Whether matrices are inputs by outputs in `transformers` (its Conv1D); `peft` wants to know."""
    return any(part.layout.is_transposed for part in family_of(arch).layer(arch).values())


def peft_names(names: Sequence[str], arch: Architecture) -> list[str]:
    """Matrices as `peft` is told of them: by their last names, where that means no other one, too."""
    lasts = [matrix.rpartition(".")[2] for matrices in projections(arch).values() for matrix in matrices]
    asked = [name.rpartition(".")[2] for name in names]
    found = (
        last if lasts.count(last) == asked.count(last) else name
        for name, last in zip(names, asked, strict=True)
    )
    return list(dict.fromkeys(found))


def resolve(names: Iterable[str], arch: Architecture) -> tuple[str, ...]:
    """The matrices that names of the config stand for.

    Raises:
        ValueError: a name stands for nothing, with what there is.
    """
    by_linear = projections(arch)
    everything = [name for matrices in by_linear.values() for name in matrices]
    groups = {name: [linear for linear in group if linear in by_linear] for name, group in _GROUPS.items()}
    wanted: set[str] = set()
    for name in names:
        found = [matrix for linear in groups.get(name, ()) for matrix in by_linear[linear]]
        found += [matrix for matrix in everything if name in (matrix, matrix.rpartition(".")[2])]
        if not found:
            single = ", ".join(name for matrix in everything for name in peft_names([matrix], arch))
            known = ", ".join(group for group, linears in groups.items() if linears)
            others = "Embeddings" if arch.experts is None else "Experts, embeddings"
            raise ValueError(
                f"{TARGETS} has {name!r}: a {arch.family} model has {known}, or single "
                f"matrices: {single}. {others} and output layer are not adapted"
            )
        wanted.update(found)
    return tuple(matrix for matrix in everything if matrix in wanted)


def num_adapter_parameters(arch: Architecture, spec: LoraSpec) -> int:
    """Of all adapters: `r (in + out)` for each adapted matrix of each layer."""
    shapes = {name: shape for matrices in projections(arch).values() for name, shape in matrices.items()}
    return arch.num_layers * sum(spec.settings.rank * sum(shapes[name]) for name in spec.targets)


def num_trainable_parameters(arch: Architecture, spec: LoraSpec | None) -> int:
    """Of the whole model: those that have a gradient and optimizer states.

    A reward model's head is trained whole beside its adapters.
    """
    if spec is None:
        return num_parameters(arch)
    head = arch.hidden_size if arch.value_head else 0
    return num_adapter_parameters(arch, spec) + head
