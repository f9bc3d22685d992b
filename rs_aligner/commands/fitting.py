"""Whether a training fits into the memory that there is, and what near it would.

Two bounds, so that no run that would fit is refused: what is certain (weights, gradients, optimizer, and
the shortest rows) against all of the memory, and what may come (the longest rows) against nine tenths of it,
since a GPU's context, collectives and fragments need some, too. The first ends the run before anything is
loaded, the second is a warning. Left out on purpose: settings that change what is learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from rs_aligner.config import TrainConfig, TrainRSConfig
from rs_aligner.config.base import Section
from rs_aligner.config.plan_parts import Line
from rs_aligner.config.recompute import Recompute
from rs_aligner.model.activations import Lengths
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.memory import Memory, memory_of, uses_bf16
from rs_aligner.model.tensors import num_parameters

SPARE = 0.1
"""The share of the memory that is left alone."""
_MOST_NODES = 64
_S = TypeVar("_S", bound=Section)


class Room(NamedTuple):
    """Memory for ranks.

    Attributes:
        where: in words.
        total: bytes of a rank.
        on_gpu: whether it is a GPU's.
    """

    where: str
    total: int
    on_gpu: bool

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
    """

    def __init__(
        self, arch: Architecture, config: TrainConfig, lengths: Lengths, room: Room | None, *, on_gpu: bool
    ) -> None:
        self.arch, self.config, self.lengths = arch, config, lengths
        self.room, self.on_gpu = room, on_gpu
        self.memory = self._of(config, lengths)

    def _of(self, config: TrainConfig, lengths: Lengths) -> Memory:
        bf16 = uses_bf16(config.trainer.precision, self.on_gpu)
        return memory_of(self.arch, config, lengths, bf16=bf16, on_gpu=self.on_gpu)

    @property
    def certain(self) -> int:
        """Bytes that a rank needs whatever is sampled."""
        shortest = self.lengths.shortest
        alone = {"model.micro_batch_size": 1, "model.max_tokens_per_microbatch": None}  # so few may be kept
        config = _with(self.config, alone)
        found = self._of(config, Lengths(shortest, shortest, min(1, self.lengths.learnt)))
        # What an optimizer's step takes on a GPU depends on whose Adam is installed.
        return replace(found, step=0).most if self.on_gpu else found.most

    @property
    def cache_bytes(self) -> int | None:
        """What is left of a GPU for the decoder's cache; None where that is not for us to say."""
        if self.room is None or not self.on_gpu or not isinstance(self.config, TrainRSConfig):
            return None
        if self.config.model.rs.generation.kv_cache_bytes is not None or not self.lengths.prompts:
            return None
        left = max(0, self.room.usable - self.memory.held)
        both = self.memory.cache + self.memory.decoding
        # Choosing tokens takes its share of the room: it grows with the rollouts that are under way.
        return max(1, min(self.memory.cache, left * self.memory.cache // max(1, both)))

    def check(self) -> None:
        """See to it that the training can fit.

        Raises:
            ValueError: it cannot; with both numbers, and the nearest settings that would.
        """
        if self.room is None or self.certain <= self.room.total:
            return
        raise ValueError(
            f"the model does not fit: a rank needs {in_gib(self.certain)} at least, and "
            f"{self.room.where} has {in_gib(self.room.total)}. {self._instead()}"
        )

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
        return self.most <= self.room.usable and (budget is None or budget >= least)

    def _instead(self) -> str:
        without = replace(self.memory, cache=0)
        if self.room is not None and self.memory.cache and without.most <= self.room.usable < self.most:
            left = self.room.usable - without.sampling
            return f"What would fit: model.rs.generation.kv_cache_bytes={left}"
        if not (found := self.nearest()):
            return "No layout of up to 64 nodes would do: start from a smaller model"
        return "What would fit: " + "; or ".join(" ".join(one) for one in found)

    def lines(self) -> Iterator[Line]:
        """The memory of a rank, for the plan."""
        memory, room = self.memory, self.room
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
            yield "  sampling", f"cache {self._cache()}"
        first, others = memory.saving
        beside = " in the memory beside it" if self.on_gpu else ""
        if first:
            shared = f", {in_gib(others)} on others" if self.config.data_parallel_size > 1 else ""
            yield "  a checkpoint", f"{in_gib(first)}{beside} on ranks of the first replica{shared}"
        if room is not None and most > room.usable:
            yield "warning", f"the longest rows may not fit into the memory. {self._instead()}"

    @property
    def most(self) -> int:
        """Bytes of a rank at any time; a cache without a bound takes what is left of a GPU."""
        budget = self.cache_bytes
        return self.memory.most if budget is None else replace(self.memory, cache=budget, decoding=0).most

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
        for others in (False, True):
            for settings in _settings(self.config, others=others):
                changed = _with(self.config, settings)
                if not self._could_run(changed):
                    continue
                if Fit(self.arch, changed, self.lengths, self.room, on_gpu=self.on_gpu).fits:
                    found.append([f"{key}={value}" for key, value in settings.items()])
                    break
        return found

    def _could_run(self, config: TrainConfig) -> bool:
        model, arch = config.model, self.arch
        tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
        widths = (arch.num_heads, arch.num_kv_heads, arch.vocab_size, arch.intermediate_size)
        return (
            not any(width % tp for width in widths)
            and arch.num_layers % pp == 0
            and config.world_size % (tp * pp) == 0
            and (
                model.max_tokens_per_microbatch is not None
                or model.global_batch_size % (model.micro_batch_size * config.data_parallel_size) == 0
            )
        )


def _settings(config: TrainConfig, *, others: bool) -> Iterator[dict[str, Any]]:
    """Changes, those that cost least first; `others`: to other layouts and numbers of nodes.

    LoRA, which learns otherwise, comes where the layout allows nothing else.
    """
    model, trainer = config.model, config.trainer
    layouts: list[dict[str, Any]] = [{}]
    if others:
        held = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
        powers = [1 << power for power in range(7)]
        sizes = [
            (tp, pp)
            for tp in powers
            for pp in powers
            if tp <= max(trainer.devices, held[0]) and (tp, pp) != held
        ]
        layouts = [
            {
                "model.tensor_model_parallel_size": tp,
                "model.pipeline_model_parallel_size": pp,
                **({"trainer.num_nodes": nodes} if nodes != trainer.num_nodes else {}),
            }
            for nodes in (trainer.num_nodes * power for power in powers)
            if nodes <= max(_MOST_NODES, trainer.num_nodes)
            for tp, pp in sorted([*sizes, held], key=lambda size: (size[0] * size[1], size[1]))
            if tp * pp <= nodes * trainer.devices and (nodes != trainer.num_nodes or (tp, pp) != held)
        ]
    adapted: list[dict[str, Any]] = [{}]
    if not others and not model.peft.is_lora:
        adapted.append({"model.peft.peft_scheme": "lora"})
    for scheme in adapted:
        for layout in layouts:
            for inner in _within(config):
                if scheme or layout or inner:
                    yield {**scheme, **layout, **inner}


def _within(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Changes that leave the layout as it is."""
    yield {}
    recompute, name = "model.activations_checkpoint_granularity", "model.micro_batch_size"
    least, micro = 1, config.model.micro_batch_size
    if config.model.max_tokens_per_microbatch is not None:
        name, least, micro = "model.max_tokens_per_microbatch", 512, config.model.max_tokens_per_microbatch
    is_now = config.model.recompute
    further = ["selective", "full"]
    if is_now is not None:
        further = further[further.index(is_now.granularity) + 1 :]
    sizes = []
    while micro > least:
        micro //= 2
        sizes.append(micro)
    yield from ({recompute: one} for one in further)
    for size in sizes:
        yield {name: size}
        yield from ({name: size, recompute: one} for one in further)


def _with(section: _S, settings: Mapping[str, Any]) -> _S:
    """A section with other values, by dotted keys."""
    for key, value in settings.items():
        name, _, rest = key.partition(".")
        changed = _with(getattr(section, name), {rest: value}) if rest else value
        section = section.model_copy(update={name: changed})
    return section


def _in_words(recompute: Recompute | None) -> str:
    if recompute is None:
        return "all are kept"
    what = "MLPs" if recompute.granularity == "selective" else "whole layers"
    return f"{what} are computed again"


def in_gib(size: int) -> str:
    """Bytes as GiB, or as MiB where they are few."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
