"""How many weights of a model a rank has, before there is one: by the tables of its family.

Left out on purpose: what is kept besides weights (`memory.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.base import Part
from rs_aligner.model.families.mixture import is_expert
from rs_aligner.model.families.registry import family_of


def stage_parameters(
    arch: Architecture, tensor_parallel: int, pipeline_parallel: int, expert_parallel: int = 1
) -> list[int]:
    """Weights of a rank of each pipeline stage."""
    family = family_of(arch)
    outside = {name: _size({name: part}, tensor_parallel) for name, part in family.outside(arch).items()}
    stages = []
    for stage in range(pipeline_parallel):
        alike = Counter(arch.stage(stage, pipeline_parallel))
        experts = expert_parameters(arch, tensor_parallel, pipeline_parallel, stage)
        size = sum(number * _size(family.layer(one), tensor_parallel) for one, number in alike.items())
        stages.append(size - experts + experts // expert_parallel)
    stages[0] += sum(outside.pop(name) for name in [*outside] if name.startswith("embedding."))
    if arch.tied_embeddings and pipeline_parallel == 1:
        outside.pop("output_layer.weight")
    stages[-1] += sum(outside.values())
    return stages


def expert_parameters(arch: Architecture, tensor_parallel: int, pipeline_parallel: int, stage: int) -> int:
    """Weights of a stage's experts on a rank, if replicas do not share them out."""
    parts = family_of(arch).layer(arch)  # of a layer that has some
    each = _size({name: part for name, part in parts.items() if is_expert(name)}, tensor_parallel)
    return each * sum(one.experts is not None for one in arch.stage(stage, pipeline_parallel))


def _size(parts: Mapping[str, Part], ranks: int) -> int:
    found = 0
    for part in parts.values():
        for shape in part.tensors.values():
            for place in part.layout.places(shape, 0, ranks):
                ends = [len(range(*one.indices(size))) for one, size in zip(place, shape, strict=False)]
                found += math.prod((*ends, *shape[len(ends) :]))
    return found
