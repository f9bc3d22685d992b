"""What ranks that decode in step agree on: whether to stop between two tokens, and whether a pass comes.

Ranks of a replica stop together; replicas agree behind their shares (`trainers.round`). Replicas that share
experts pass through the layers together, though each decodes rollouts of its own: one that has none left
goes along with the others, without tokens, until all are done. Left out on purpose: rollouts that were cut;
nothing of them is handed on.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from rs_aligner import stopping
from rs_aligner.model.experts import mixtures
from rs_aligner.model.runtime import Runtime

AGREE_EVERY = 16  # tokens


class StopPoll:
    """Asked between tokens; once it says yes, it stays with it.

    Args:
        runtime: this rank's place.
        every: times that it is asked between two agreements, where several ranks hold a replica.
    """

    def __init__(self, runtime: Runtime, *, every: int = AGREE_EVERY) -> None:
        self._runtime, self._every = runtime, every
        self._is_alone = runtime.tp_size == runtime.pp_size == 1
        self._asked = 0
        self._stops = False

    def __call__(self) -> bool:
        wish = stopping.poll()
        if self._is_alone or self._stops:
            return self._stops or wish
        if self._asked % self._every == 0:
            self._stops = self._runtime.any_of_replica(wish)
            if self._stops and not wish:  # this rank may speak for the replica, and has to know
                stopping.ask("another rank of the replica was asked")
        self._asked += 1
        return self._stops


def begin_pass(runtime: Runtime) -> None:
    """Tell the replicas that share this one's experts that it passes through the layers."""
    if runtime.ep_size > 1:
        _any_passes(runtime, True)


@torch.no_grad()
def go_along(model: GPTModel, runtime: Runtime) -> None:
    """Go along with those replicas that still pass through the layers, until none does.

    Every rank calls it when its replica has decoded its share.

    Args:
        model: this rank's part.
        runtime: of this rank.
    """
    if runtime.ep_size == 1:
        return
    parameter = next(model.parameters())
    nothing = parameter.new_empty(0, model.config.hidden_size)
    while _any_passes(runtime, False):
        for mixture in mixtures(model):
            mixture.mixed(nothing)


def _any_passes(runtime: Runtime, does: bool) -> bool:
    some = torch.tensor([does], dtype=torch.int32, device=runtime.device)
    dist.all_reduce(some, dist.ReduceOp.MAX, group=parallel_state.get_expert_model_parallel_group())
    return bool(some.item())
