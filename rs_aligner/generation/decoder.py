"""A decoding engine as the others see it: what it is offered, what it is asked, and how it declines.

An engine is a file with a `Decoder` and an `Engine`, and a line in `engines.py`. Left out on purpose: which
there are and which one decodes (`engines.py`), and what becomes of what they yield (`waves.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from megatron.core.models.gpt import GPTModel

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.rows import Ended, RolloutRow
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import EndStrings
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.runtime import Runtime


class CannotDecode(RuntimeError):
    """An engine cannot decode this model here; the message says why, for a log line."""


@dataclass(frozen=True, slots=True)
class Exports:
    """How a policy's weights leave it for an engine in other processes, and where to.

    Attributes:
        root: the folder in which each version gets one of its own.
        whole: writes the whole model, adapters merged, as a Hugging Face folder; every rank must call it.
        adapters: writes its adapters alone; None where it has none. Every rank must call it.
    """

    root: Path
    whole: Callable[[Path], None]
    adapters: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What an engine is to decode, the same on every rank but for the rank's own part.

    Attributes:
        model: this rank's part of the policy (Megatron's `GPTModel`); its weights change while it is trained.
        arch: its architecture.
        runtime: of this rank.
        config: the config's section; `kv_cache_bytes` is the engine's to keep to.
        allowed: bool `[V]` on the CPU, the ids that may be sampled; None for all.
        exports: how its weights get to an engine that has weights of its own; None where they cannot.
    """

    model: GPTModel
    arch: Architecture
    runtime: Runtime
    config: GenerationConfig
    allowed: torch.Tensor | None
    exports: Exports | None = None

    def require(self, known: frozenset[str]) -> None:
        """See to it that an engine that knows these features of layers knows all that the model has.

        Raises:
            CannotDecode: it does not; with what it lacks.
        """
        if unknown := self.arch.features - known:
            is_or_are = "is" if len(unknown) == 1 else "are"
            raise CannotDecode(
                f"{', '.join(sorted(unknown))} of {self.arch.family} {is_or_are} unknown to it"
            )


@dataclass(frozen=True, slots=True)
class Wave:
    """Rollouts that are decoded together.

    Attributes:
        rows: the rollouts, those of a prompt side by side; at least one.
        controls: how to sample.
        end_strings: what ends a response: end tokens, and texts.
        stops: to be asked between tokens: whether the wave is to be left as it is.
        at_once: prompts that servers may have under way; None for all.
    """

    rows: list[RolloutRow]
    controls: Controls
    end_strings: EndStrings
    stops: Callable[[], bool] = lambda: False
    at_once: int | None = None


class Decoder(Protocol):
    """An engine with a policy, whose weights it decodes as they are when it is asked."""

    @property
    def description(self) -> str:
        """What decodes, for the log line."""

    @property
    def rows_stand_alone(self) -> bool:
        """Whether what is missing of a wave is decoded alone.

        Either a rollout has the same bits whatever else is in the wave, or nobody promises equal bits.
        """

    @property
    def is_served(self) -> bool:
        """Whether servers decode, which take requests as they come.

        Then a replica's whole share is one wave, and the seeds of a prompt's rollouts follow each other: a
        server is asked for several by the first one's.
        """

    def prepare(self, version: int) -> int:
        """See to it that what is decoded from now on is by the policy's weights; every rank calls this.

        Args:
            version: of the weights that the model holds now.

        Returns:
            The version that decodes: that one, where the engine decodes the model's own weights.
        """

    def decode(self, wave: Wave) -> Iterator[Ended]:
        """The wave's rollouts in any order, each as soon as it ends.

        Every rank of a replica runs this to the end, which comes early where `wave.stops` says so: it is the
        same on all of them, if it is asked equally often. Its source yields all of them, the others the same
        or none. A rollout follows from its row (the seed, too), the controls and the weights.

        Raises:
            ValueError: a single rollout may not fit into the cache, or no token may come.
        """


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to decode.

    Attributes:
        name: in messages.
        is_meant: whether it is to be tried where the config leaves the choice; all ranks must say the same.
        new: makes the decoder; raises `CannotDecode` where it cannot run this architecture, or not here.
    """

    name: str
    is_meant: Callable[[Offer], bool]
    new: Callable[[Offer], Decoder]
