"""What of a training waits in the CPU's memory while nothing needs it: the optimizer's states.

Two ways, which may be used together. `while_sampling`: masters and averages leave the GPU before rollouts are
sampled, come back for the first update, and gradients give their memory up meanwhile. `fraction`: a share of
them is never on the GPU but for its own moment in the update, a piece at a time. Either way Adam works on the
GPU on the same numbers, so no bit of what is learnt depends on it; Megatron's own (`optimizer_cpu_offload`)
computes updates on the CPU, in another order. Left out on purpose: copying beside computation, and averages
in fewer bits. On a GPU nobody has run this: tests hold it on a CPU, whose memory they take to be apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MixedPrecisionOptimizer

from rs_aligner.model.host_memory import Aside, Vacated, is_apart
from rs_aligner.model.memory import PIECE
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy.adam_states import begin, parameters_of, parts_of, use_torchs

_logger = logging.getLogger("rs_aligner")
_LISTS = ("model_fp32_groups", "shard_fp32_groups", "model_float16_groups", "shard_fp32_from_float16_groups")
"""Where Megatron's distributed optimizer has its parameters, beside torch's: by group, of model and own."""


@dataclass(frozen=True, slots=True)
class Offloading:
    """Which of the optimizer's states wait in the CPU's memory.

    Attributes:
        while_sampling: all of them and the gradients, while rollouts are sampled.
        fraction: the share of them that is on the GPU only while it is used.
    """

    while_sampling: bool = False
    fraction: float = 0.0

    def __bool__(self) -> bool:
        return self.while_sampling or self.fraction > 0


NOTHING = Offloading()


@dataclass(slots=True)
class _Piece:
    """Parameters of one group of an optimizer, stepped together.

    Attributes:
        group: its number.
        lists: the optimizer's own lists (`_LISTS`), with these parameters only.
        moves: whether its states wait in the CPU's memory.
        aside: these states, once they have left.
    """

    group: int
    lists: dict[str, list[Any]]
    moves: bool
    aside: Aside | None = field(default=None)

    @property
    def mains(self) -> list[torch.Tensor]:
        """What Adam steps, in its group's order."""
        return [*self.lists["shard_fp32_groups"], *self.lists["shard_fp32_from_float16_groups"]]


class Offload:
    """The way of the optimizer's states between a GPU's memory and the CPU's.

    Args:
        ddp: the model, with its gradients.
        how: what waits where.
        runtime: of this rank.
    """

    def __init__(self, ddp: DistributedDataParallel, how: Offloading, runtime: Runtime) -> None:
        if how and not is_apart(runtime.device):
            if runtime.rank == 0:
                _logger.warning("offloading the optimizer's states has no effect: a CPU's memory has them")
            how = NOTHING
        self.how = how
        self._parts: list[Any] = []
        self._pieces: dict[int, list[_Piece]] = {}
        self._piece_of: dict[int, _Piece] = {}
        self._rest: Aside | None = None
        self._is_changed = True
        self._gradients: Vacated | None = None
        if how:
            buffers = [*ddp.buffers, *ddp.expert_parallel_buffers]
            self._gradients = Vacated([buffer.grad_data for buffer in buffers])
            self._gradients.leave()  # until there are some; the optimizer is built in the room
        if how.fraction:
            use_torchs()  # others make new states when they load some

    def take(self, optimizer: MegatronOptimizer) -> None:
        """Let an optimizer that was just built, with no step made, have its states where they are to be."""
        self._parts = parts_of(optimizer)
        if not self.how.fraction:
            return
        for number, part in enumerate(self._parts):
            assert isinstance(part, DistributedOptimizer), "the config sees to that"
            self._pieces[number] = pieces = list(_pieces_of(part, self.how.fraction))
            self._piece_of |= {id(main): piece for piece in pieces for main in piece.mains}
            for piece in pieces:
                if piece.moves:
                    begin(part, piece.mains)
                    self._leave(part, piece)
            part.step_with_ready_grads = partial(self._step, part, pieces)
            part._get_main_param_and_optimizer_states = partial(self._read, part)
            part._set_main_param_and_optimizer_states = partial(self._write, part)

    def make_room(self) -> None:
        """Rollouts are going to be sampled."""
        if not self.how.while_sampling:
            return
        assert self._gradients is not None
        self._gradients.leave()
        tensors = [one for number in range(len(self._parts)) for one in self._that_stay(number)]
        if self._rest is None or not _are_same(self._rest.tensors, tensors):
            self._rest, self._is_changed = Aside(tensors) if tensors else None, True
        if self._rest is not None:
            self._rest.leave(is_changed=self._is_changed)
        self._is_changed = False
        if tensors and tensors[0].is_cuda:
            torch.cuda.empty_cache()  # so that the cache of keys and values finds it in one piece

    def gradients_here(self) -> None:
        """Gradients are going to be added up from zero."""
        if self._gradients is not None:
            self._gradients.come_back()

    def states_here(self, *, changes: bool) -> None:
        """The states are going to be read; or changed."""
        if self._rest is not None:
            self._rest.come_back()
        self._is_changed |= changes

    def each(self, part: MegatronOptimizer) -> Iterator[None]:
        """Let what is done with a part's states be done once for each piece, which alone is there then."""
        self.states_here(changes=True)
        pieces = self._pieces.get(self._parts.index(part)) if self._pieces else None
        if pieces is None:
            yield
            return
        for piece in pieces:
            with self._in_place(part, piece):
                yield

    def _that_stay(self, number: int) -> Iterator[torch.Tensor]:
        """A part's states that do not wait in the CPU's memory anyway."""
        part, pieces = self._parts[number], self._pieces.get(number)
        if pieces is None:
            yield from _states(part, parameters_of(part))
            return
        for piece in pieces:
            if not piece.moves:
                yield from _states(part, piece.mains)

    def _leave(self, part: Any, piece: _Piece) -> None:
        tensors = list(_states(part, piece.mains))
        if piece.aside is None or not _are_same(piece.aside.tensors, tensors):
            piece.aside = Aside(tensors)
        piece.aside.leave()

    @contextmanager
    def _in_place(self, part: Any, piece: _Piece) -> Iterator[dict[str, Any]]:
        """The optimizer has this piece inside, and no other; what is given is the group that it has."""
        if piece.aside is not None:
            piece.aside.come_back()
        lists, groups = {name: getattr(part, name) for name in _LISTS}, part.optimizer.param_groups
        own = {**groups[piece.group], "params": piece.mains}
        part.optimizer.param_groups = [own]
        for name in _LISTS:
            setattr(part, name, [piece.lists[name]])
        try:
            yield own
        finally:
            part.optimizer.param_groups = groups
            for name, value in lists.items():
                setattr(part, name, value)
            if piece.moves:
                self._leave(part, piece)

    def _step(self, part: Any, pieces: Sequence[_Piece]) -> bool:
        """As Megatron's `step_with_ready_grads`, piece by piece."""
        steps = {}
        for piece in pieces:
            with self._in_place(part, piece) as group:
                MixedPrecisionOptimizer.step_with_ready_grads(part)
            if "step" in group:  # where fused optimizers count; each piece begins with what there was
                steps[piece.group] = group["step"]
        for number, step in steps.items():
            part.optimizer.param_groups[number]["step"] = step
        for chunk in part.model_chunks:
            chunk.start_param_sync()
        return True

    def _read(self, part: Any, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a checkpoint has of a parameter, from wherever it is."""
        states = DistributedOptimizer._get_main_param_and_optimizer_states(part, parameter)
        aside = self._piece_of[id(states["param"])].aside
        return {
            name: aside.read(one) if aside is not None and aside.holds(one) else one
            for name, one in states.items()
        }

    def _write(self, part: Any, parameter: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
        """Take what a checkpoint has of a parameter to wherever it is."""
        states = DistributedOptimizer._get_main_param_and_optimizer_states(part, parameter)
        aside = self._piece_of[id(states["param"])].aside
        for name, one in states.items():
            if aside is not None and aside.holds(one):
                aside.write(one, values[name])
            else:
                one.copy_(values[name])


def _pieces_of(part: DistributedOptimizer, fraction: float) -> Iterator[_Piece]:
    """An optimizer's parameters in pieces: the first of them move, until the share is reached."""
    total, taken = sum(one.numel() for one in parameters_of(part)), 0
    for group in range(len(part.optimizer.param_groups)):
        piece, size = _Piece(group, {name: [] for name in _LISTS}, taken < fraction * total), 0
        for model, own in (_LISTS[:2], _LISTS[2:]):
            for pair in zip(getattr(part, model)[group], getattr(part, own)[group], strict=True):
                moves = taken < fraction * total
                if size and (moves != piece.moves or size >= (PIECE if moves else total)):
                    yield piece
                    piece, size = _Piece(group, {name: [] for name in _LISTS}, moves), 0
                for name, one in zip((model, own), pair, strict=True):
                    piece.lists[name].append(one)
                size, taken = size + pair[1].numel(), taken + pair[1].numel()
        if size:
            yield piece


def _states(part: Any, mains: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Masters and averages of parameters: what of an optimizer is worth moving, and nobody else's.

    A float32 model has no masters: there the model's own weights, or parts of them, are stepped.
    """
    lists = [
        getattr(part, name, []) for name in ("shard_fp32_from_float16_groups", "fp32_from_float16_groups")
    ]
    masters = {id(one) for groups in lists for group in groups for one in group}
    for main in mains:
        if id(main) in masters:
            yield main
        yield from (one for one in part.optimizer.state.get(main, {}).values() if _is_large(one, main))


def _is_large(state: Any, main: torch.Tensor) -> bool:
    """Whether it is no count of steps, and where the parameter is."""
    return isinstance(state, torch.Tensor) and state.dim() > 0 and state.device == main.device


def _are_same(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
