"""Which of a mixture's experts a rank has: replicas side by side share them out (expert parallelism).

Each of so many replicas has a share of every layer's experts and all of everything else. Tokens travel to
where their experts are, so these replicas pass through the layers together, as often as one another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.mixture import EXPERT
from rs_aligner.model.runtime import Runtime

if TYPE_CHECKING:
    import torch

_NAME = re.compile(re.escape(EXPERT).replace(r"\{\}", r"(\d+)"))


def is_shared_out(parameter: torch.nn.Parameter) -> bool:
    """Whether other replicas have other experts in its place."""
    return not getattr(parameter, "allreduce", True)  # Megatron's mark


def whole_name(name: str, arch: Architecture, runtime: Runtime) -> str:
    """The name of a layer's parameter in the whole model, where experts are counted through."""
    found = _NAME.match(name)
    if found is None or arch.experts is None:
        return name
    first = runtime.ep_rank * (arch.experts.number // runtime.ep_size)
    return EXPERT.format(first + int(found[1])) + name[found.end() :]
