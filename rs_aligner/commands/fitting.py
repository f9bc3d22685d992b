"""Whether a training fits into the memory that there is, and what near it would.

Two bounds, so that no run that would fit is refused: what is certain (weights, gradients, optimizer, and
the shortest rows) against all of the memory, and what may come (the longest rows) against nine tenths of it,
since a GPU's context, collectives and fragments need some, too. The first ends the run before anything is
loaded, the second is a warning. Left out on purpose: settings that change what is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from rs_aligner.commands.decoding import Decoding
from rs_aligner.commands.nearest import changed, settings
from rs_aligner.config import TrainConfig, TrainRSConfig
from rs_aligner.config.plan_parts import Line, in_gib
from rs_aligner.config.recompute import Recompute
from rs_aligner.generation.decoder import Ahead
from rs_aligner.model.activations import Lengths
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.memory import Memory, memory_of, uses_bf16
from rs_aligner.model.tensors import num_parameters
from rs_aligner.model.wave import wave_of

SPARE = 0.1
"""The share of the memory that is left alone."""


class Room(NamedTuple):
    """Memory for ranks.

    Attributes:
        where: in words.
        total: bytes of a rank.
        on_gpu: whether it is a GPU's.
        beside: bytes of a rank in the memory beside a GPU; None where that is not known.
    """

    where: str
    total: int
    on_gpu: bool
    beside: int | None = None

    def __str__(self) -> str:
        return f"{self.where} of {in_gib(self.total)}"

    @property
    def usable(self) -> int:
        """Without what is left alone."""
        return int(self.total * (1 - SPARE))


class Fit:
    """A training's memory, beside the room for it.

    Args:
        arch: the model's.
        config: a checked config.
        lengths: of its data.
        room: for a rank; None where it is not known.
        on_gpu: whether the training is on a GPU.

    Raises:
        ValueError: no engine can decode the model, or not the one that was asked for.
    """

    def __init__(
        self, arch: Architecture, config: TrainConfig, lengths: Lengths, room: Room | None, *, on_gpu: bool
    ) -> None:
        self.arch, self.config, self.lengths = arch, config, lengths
        self.room, self.on_gpu = room, on_gpu
        self.decoding: Decoding | None = None
        if isinstance(config, TrainRSConfig) and lengths.prompts:
            ahead = Ahead(arch, on_gpu, uses_bf16(config.trainer.precision, on_gpu))
            self.decoding = Decoding.of(config.model.rs.generation, "model.rs.generation", ahead)
        self.memory = self._of(config, lengths)

    def _of(self, config: TrainConfig, lengths: Lengths) -> Memory:
        bf16 = uses_bf16(config.trainer.precision, self.on_gpu)
        cached = None if self.decoding is None else self.decoding.cached
        return memory_of(self.arch, config, lengths, bf16=bf16, on_gpu=self.on_gpu, cached=cached)

    @property
    def certain(self) -> int:
        """Bytes that a rank needs whatever is sampled."""
        shortest = self.lengths.shortest
        alone = {"model.micro_batch_size": 1, "model.max_tokens_per_microbatch": None}  # so few may be kept
        config = changed(self.config, alone)
        found = self._of(config, Lengths(shortest, shortest, min(1, self.lengths.learnt)))
        # What an optimizer's step takes on a GPU depends on whose Adam is installed.
        return replace(found, step=0).most if self.on_gpu else found.most

    @property
    def cache_bytes(self) -> int | None:
        """What is left of a GPU for the decoder's cache; None where that is not for us to say."""
        if self.room is None or not self.on_gpu or not isinstance(self.config, TrainRSConfig):
            return None
        if self.config.model.rs.generation.kv_cache_bytes is not None or not self.memory.cache:
            return None
        left = max(0, self.room.usable - self.memory.held_sampling)
        both = self.memory.cache + self.memory.decoding
        # Choosing tokens takes its share of the room: it grows with the rollouts that are under way.
        return max(1, min(self.memory.cache, left * self.memory.cache // max(1, both)))

    def check(self) -> None:
        """See to it that the training can fit.

        Raises:
            ValueError: it cannot; with both numbers, and the nearest settings that would.
        """
        if self.room is None:
            return
        if self._lacks_beside:
            raise ValueError(
                f"what is offloaded does not fit: {in_gib(self.memory.waiting)} of a rank wait in the memory "
                f"beside a GPU, of which it has {in_gib(self.room.beside or 0)}; lower "
                "model.optim.offload_fraction, or set model.rs.offload_adam_states=false"
            )
        if self.certain <= self.room.total:
            return
        raise ValueError(
            f"the model does not fit: a rank needs {in_gib(self.certain)} at least, and "
            f"{self.room.where} has {in_gib(self.room.total)}. {self._instead()}"
        )

    @property
    def _lacks_beside(self) -> bool:
        """Whether what waits beside a GPU is more than there is; what is not known is enough."""
        assert self.room is not None, "there is a room to fit into"
        return self.room.beside is not None and self.memory.waiting > self.room.beside

    @property
    def verdict(self) -> str:
        """What is certain, beside what there is.

        Raises:
            ValueError: as `check`.
        """
        self.check()
        if self.room is None:
            return "not known here: this machine has no GPU"
        return f"a rank needs {in_gib(self.certain)} at least, of {in_gib(self.room.total)}"

    @property
    def fits(self) -> bool:
        """Whether the longest rows fit, with some memory to spare, and a prompt's rollouts at least."""
        assert self.room is not None, "there is a room to fit into"
        budget = self.cache_bytes
        least = self.memory.cache // max(1, self.lengths.prompts)
        fits = self.most <= self.room.usable and not self._lacks_beside
        return fits and (budget is None or budget >= least)

    def _instead(self) -> str:
        without = replace(self.memory, cache=0)
        if self.room is not None and self.memory.cache and without.most <= self.room.usable < self.most:
            left = self.room.usable - without.sampling
            return f"What would fit: model.rs.generation.kv_cache_bytes={left}"
        if not (found := self.nearest()):
            return "No layout of up to 64 nodes would do: start from a smaller model"
        return "What would fit: " + "; or ".join(" ".join(one) for one in found)

    def lines(self) -> Iterator[Line]:
        """The engine and the memory of a rank, for the plan."""
        memory, room = self.memory, self.room
        yield from self._engine()
        most = self.most
        of = "" if room is None else f", of {in_gib(room.total)} ({room.where})"
        yield "memory of a rank", f"up to {in_gib(most)}{of}; {num_parameters(self.arch):,} parameters in all"
        start = f", starting weights {in_gib(memory.start)}" if memory.start else ""
        yield (
            "  all the time",
            f"weights {in_gib(memory.weights)}, gradients {in_gib(memory.gradients)}, "
            f"optimizer {in_gib(memory.optimizer)}{start}",
        )
        kept = self.config.model.recompute
        yield (
            "  training",
            f"activations up to {in_gib(memory.activations)} ({_in_words(kept)}), "
            f"logits up to {in_gib(memory.logits)}",
        )
        if memory.cache:
            away = f"; {in_gib(memory.away)} of the above give up their place" if memory.away else ""
            yield "  sampling", f"cache {self._cache()}{away}"
        if memory.waiting:
            yield "  beside it", f"up to {in_gib(memory.waiting)} wait in the memory of the CPU"
        first, others = memory.saving
        beside = " in the memory beside it" if self.on_gpu else ""
        if first:
            shared = f", {in_gib(others)} on others" if self.config.data_parallel_size > 1 else ""
            yield "  a checkpoint", f"{in_gib(first)}{beside} on ranks of the first replica{shared}"
        if room is not None and most > room.usable:
            yield "warning", f"the longest rows may not fit into the memory. {self._instead()}"
        if room is not None and room.beside is not None and self.beside > room.beside:
            yield (
                "warning",
                f"a checkpoint may not fit into the memory beside the GPUs: {in_gib(self.beside)} of a rank, "
                f"which has {in_gib(room.beside)}",
            )

    def _engine(self) -> Iterator[Line]:
        if self.decoding is not None and isinstance(self.config, TrainRSConfig):
            yield self.decoding.line()
            wave = wave_of(self.config, self.lengths.prompts, self.lengths.prompt)
            gpu = self.room.usable if self.room is not None and self.room.on_gpu else None
            yield from self.decoding.server_lines(wave, gpu, trains=True)

    @property
    def most(self) -> int:
        """Bytes of a rank at any time; a cache without a bound takes what is left of a GPU."""
        budget = self.cache_bytes
        return self.memory.most if budget is None else replace(self.memory, cache=budget, decoding=0).most

    @property
    def beside(self) -> int:
        """Bytes of a rank in the memory beside a GPU while a checkpoint is saved: a node's, shared out."""
        first, others = self.memory.saving
        devices = self.config.trainer.devices
        writing = min(devices, self.config.model_parallel_size)  # on the node that has the first replica
        return self.memory.waiting + (writing * first + (devices - writing) * others) // devices

    def _cache(self) -> str:
        assert isinstance(self.config, TrainRSConfig), "it samples"
        asked = self.config.model.rs.generation.kv_cache_bytes
        budget = self.cache_bytes if asked is None else asked
        if budget is not None and budget <= self.memory.cache:
            return f"kept within {in_gib(budget)}"
        return f"up to {in_gib(self.memory.cache)}"

    def nearest(self) -> list[list[str]]:
        """Overrides under which the longest rows would fit: the nearest in this layout, and in another."""
        found: list[list[str]] = []
        experts = 1 if self.arch.experts is None else self.arch.experts.number
        for others in (False, True):
            for values in settings(self.config, others=others, experts=experts):
                other = changed(self.config, values)
                if not self._could_run(other):
                    continue
                if Fit(self.arch, other, self.lengths, self.room, on_gpu=self.on_gpu).fits:
                    found.append([f"{key}={str(value).lower()}" for key, value in values.items()])
                    break
        return found

    def _could_run(self, config: TrainConfig) -> bool:
        model, arch = config.model, self.arch
        tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
        widths = (arch.num_heads, arch.num_kv_heads, arch.vocab_size, *arch.mlp_sizes)
        return (
            not any(width % tp for width in widths)
            and arch.num_layers % pp == 0
            and config.world_size % (tp * pp * model.expert_model_parallel_size) == 0
            and (
                model.max_tokens_per_microbatch is not None
                or model.global_batch_size % (model.micro_batch_size * config.data_parallel_size) == 0
            )
        )


def _in_words(recompute: Recompute | None) -> str:
    if recompute is None:
        return "all are kept"
    what = "MLPs" if recompute.granularity == "selective" else "whole layers"
    return f"{what} are computed again"
