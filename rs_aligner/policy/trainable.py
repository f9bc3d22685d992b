"""What a policy and a reward model have in common while they are trained: rates, checkpoints, export.

Left out on purpose: how a model is loaded and what a step does; each has its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from megatron.core.models.gpt import GPTModel

from rs_aligner.batching import even_batches
from rs_aligner.generation.decoder import Exports
from rs_aligner.model import huggingface
from rs_aligner.model.adapter_folder import save_adapters
from rs_aligner.model.architecture import Architecture
from rs_aligner.model.lora import Adapters
from rs_aligner.model.new_rows import config_changes
from rs_aligner.model.runtime import Runtime
from rs_aligner.policy import checkpoint
from rs_aligner.policy.offload import NOTHING, Offloading
from rs_aligner.policy.outcome import NotFinite
from rs_aligner.policy.training import BaseTrainer

Row = TypeVar("Row")
Stats = TypeVar("Stats")
T = TypeVar("T", bound=BaseTrainer)


@dataclass(frozen=True, slots=True)
class Optimization:
    """How whatever is trained is trained.

    Attributes:
        learning_rate: the rate of an optimizer step, by the number of steps made before it.
        precision: `bf16`, `fp32`, or `auto` (bf16 on a GPU).
        clip_grad: largest norm of the global gradient; None or 0 does not clip.
        offload: what of the optimizer waits in the CPU's memory.
    """

    learning_rate: Callable[[int], float]
    precision: str = "auto"
    clip_grad: float | None = 1.0
    offload: Offloading = NOTHING


@dataclass(frozen=True, slots=True)
class Skipped(Generic[Row]):
    """An optimizer step that was not applied: its loss or its gradient is not finite.

    Attributes:
        loss: of the batch.
        learning_rate: that the step would have been made with.
        skipped: the batch's rows.
    """

    loss: float
    learning_rate: float
    skipped: Sequence[Row]
    grad_norm: ClassVar[float] = math.nan
    figures: ClassVar[dict[str, float]] = {}


class Trainable(Generic[T, Row, Stats]):
    """A model with its optimizer.

    Args:
        model: this rank's part.
        arch: its architecture.
        trainer: its optimizer.
        source: the Hugging Face folder that has its config and tokenizer.
        batch_size: rows of an optimizer step, at most.
        learning_rate: the rate of an optimizer step, by the number of steps made before it.
        changes: keys of `config.json` that are other than in `source`, besides its vocabulary's size.
        adapters: what is trained of it, if it is not all of its weights.

    Attributes:
        optimizer_steps: optimizer steps that were applied.
    """

    def __init__(
        self,
        model: GPTModel,
        arch: Architecture,
        trainer: T,
        source: Path,
        *,
        batch_size: int,
        learning_rate: Callable[[int], float],
        changes: Mapping[str, Any] | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.adapters = trainer.adapters = adapters
        self.model, self.arch, self.trainer, self.source = model, arch, trainer, source
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.changes = {**(changes or {}), **config_changes(arch, source)}
        self.runtime: Runtime = trainer.runtime
        self._version = self.optimizer_steps = 0

    @property
    def version(self) -> int:
        """Finished training steps; the trainer's loop counts them, and thereby says that one is finished."""
        return self._version

    @version.setter
    def version(self, value: int) -> None:
        self._version, self.trainer.moved = value, False

    def step(self, rows: Sequence[Row], learning_rate: float) -> Stats:
        """One optimizer step on a global batch."""
        raise NotImplementedError

    def train(self, rows: Sequence[Row]) -> list[Stats | Skipped[Row]]:
        """Pass once over the rows, an optimizer step for each batch.

        The rows are the same on every rank. There are as few batches as `batch_size` allows, their sizes
        differ by at most one, and each has its own true denominator. A batch whose loss or gradient is not
        finite leaves the weights as they are.

        Raises:
            Stopped: a stop was asked for, and no weight has moved since the last finished step, or no time is
                left.
        """
        self.put_beside()
        stats: list[Stats | Skipped[Row]] = []
        for batch in even_batches(rows, self.batch_size):
            rate = self.learning_rate(self.optimizer_steps)
            try:
                stats.append(self.step(batch, rate))
            except NotFinite as error:
                stats.append(Skipped(error.loss, rate, batch))
            else:
                self.optimizer_steps += 1
        return stats

    def gather(self, item: Any) -> list[Any]:
        """The items of the replicas' sources, in data-parallel order, on every rank."""
        return self.runtime.gather(item)

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        """Per key the largest value over all ranks."""
        return self.runtime.maximum(values)

    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        """Write a checkpoint that `load` continues from exactly. Every rank must call it."""
        state = {"version": self.version, "optimizer_steps": self.optimizer_steps, "counters": counters}
        checkpoint.save(folder, self.trainer, self.runtime, state, self.source, self.changes)

    def checkpoint_bytes(self) -> int:
        """About as many bytes as a checkpoint has. Every rank must call it."""
        return checkpoint.state_bytes(self.trainer, self.runtime)

    def load(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint; returns the counters that it was saved with."""
        self.put_beside()
        state = checkpoint.load(folder, self.trainer, self.runtime)
        self.version, self.optimizer_steps = state["version"], state["optimizer_steps"]
        counters: dict[str, Any] = state["counters"]
        return counters

    def export(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder, or its adapters as `peft` has them.

        Every rank must call it.
        """
        if self.adapters is not None and self.adapters.is_exported_alone:
            save_adapters(folder, self.adapters, self.source)
            return
        self._save_whole(folder)

    def exports(self, root: Path) -> Exports:
        """How the weights get to a decoder with weights of its own, in the type that they are trained in."""
        whole = partial(self._save_whole, as_trained=True)
        if self.adapters is None:
            return Exports(root, whole)
        alone = partial(save_adapters, adapters=self.adapters, source=self.source)
        return Exports(root, whole, alone, self.adapters.spec.settings.rank)

    def _save_whole(self, folder: Path, *, as_trained: bool = False) -> None:
        with nullcontext() if self.adapters is None else self.adapters.merged():
            huggingface.save_weights(
                *(folder, self.model, self.arch, self.runtime, self.source, self.changes),
                as_trained=as_trained,
            )

    def put_beside(self) -> None:
        """See to it that adapters are beside the weights and not in them, as they are trained."""
        if self.adapters is not None:
            self.adapters.restore()
