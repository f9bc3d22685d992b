"""A decoding engine as the others see it: what it is offered, what it is asked, and how it declines.

An engine is a file with a `Decoder` and an `Engine`, and a line in `engines.py`. Left out on purpose: which
there are and which one decodes (`engines.py`), and what becomes of what they yield (`waves.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.rows import Ended, RolloutRow
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import EndStrings
from rs_aligner.model.architecture import Architecture

if TYPE_CHECKING:  # slow, and a plan asks engines without a model
    from megatron.core.models.gpt import GPTModel

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
        rank: of the adapters.
    """

    root: Path
    whole: Callable[[Path], None]
    adapters: Callable[[Path], None] | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is known of an offer before the model is there, the same on every rank.

    Attributes:
        arch: its architecture.
        on_gpu: whether it will be on a GPU.
        bf16: whether its weights will be bf16, not float32.
    """

    arch: Architecture
    on_gpu: bool
    bf16: bool

    @property
    def own_bytes(self) -> int:
        """Bytes of a number in the model's own type."""
        return 2 if self.bf16 else 4

    def unknown(self, known: frozenset[str]) -> str | None:
        """What an engine that knows these features of layers lacks for the model; None if nothing."""
        if unknown := self.arch.features - known:
            return f"it does not know {', '.join(sorted(unknown))} of {self.arch.family}"
        return None


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

    @property
    def ahead(self) -> Ahead:
        """What was known of it before."""
        bf16 = next(self.model.parameters()).dtype == torch.bfloat16
        return Ahead(self.arch, self.runtime.device.type == "cuda", bf16)


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

    def prepare(self, version: int, *, now: bool = False) -> int:
        """See to it that what is decoded from now on is by the policy's weights; every rank calls this.

        Args:
            version: of the weights that the model holds now.
            now: whether no others will do, be they ever so little older.

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

    def close(self, *, is_over: bool = False) -> None:
        """Decode no more.

        Args:
            is_over: whether all is done, so that nothing has to stay for who goes on later.
        """


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to decode.

    Attributes:
        name: in the config, and in messages.
        new: makes the decoder; raises `CannotDecode` where it turns out that it cannot.
        passed_over: why it is not tried where the config leaves the choice; None where it is.
        declines: why it cannot decode a model, as far as that shows before the model is there; None if not.
        cached_bytes: of a number of keys and values on a rank; 0 where none are there.
    """

    name: str
    new: Callable[[Offer], Decoder]
    passed_over: Callable[[Ahead], str | None] = lambda ahead: None
    declines: Callable[[Ahead], str | None] = lambda ahead: None
    cached_bytes: Callable[[Ahead], int] = lambda ahead: ahead.own_bytes

    def decoder(self, offer: Offer) -> Decoder:
        """A decoder for a policy.

        Raises:
            CannotDecode: it cannot run this architecture, or not here.
        """
        if (why := self.declines(offer.ahead)) is not None:
            raise CannotDecode(why)
        return self.new(offer)
