"""An order of prompts, or of rows, whose place can be saved exactly.

No torch: the order of an epoch comes from a seed and a generator of its own, so that nothing else
that draws random numbers can disturb it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rs_aligner.batching import next_batch_size


@dataclass(frozen=True, slots=True)
class Draw:
    """One prompt of a step.

    Attributes:
        index: its place in the prompt set.
        position: its place in the epoch's order, part of the seeds of its rollouts.
        epoch: the epoch, counted from 0.
    """

    index: int
    position: int
    epoch: int


class DataOrder(Iterator[list[Draw]]):
    """Draws the prompts of step after step, without end.

    Every prompt comes exactly once in an epoch. A step does not reach across epochs: the last one of
    an epoch has what is left, rather than dropping prompts or mixing two orders; or, where draws are to be
    `even`, an epoch's differ by one at most. The order of an epoch depends on the seed and the epoch alone,
    so the state is two numbers, and what guards them.

    Args:
        num_prompts: how many prompts there are.
        num_per_step: how many a step takes, at most.
        seed: of the order.
        shuffle: False keeps the order of the files.
        even: whether an epoch is cut into equal draws. For draws that are batches of an optimizer step.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self, num_prompts: int, num_per_step: int, *, seed: int, shuffle: bool = True, even: bool = False
    ) -> None:
        if num_prompts < 1 or num_per_step < 1:
            raise ValueError(
                f"needs at least one prompt and one per step, got {num_prompts} and {num_per_step}"
            )
        self._guard = {"num_prompts": num_prompts, "seed": seed, "shuffle": shuffle}
        self._num_prompts, self._num_per_step = num_prompts, num_per_step
        self._seed, self._shuffle, self._even = seed, shuffle, even
        self._epoch, self._position = 0, 0
        self._order = self._order_of(epoch=0)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return -(-self._num_prompts // self._num_per_step)

    @property
    def consumed_prompts(self) -> int:
        """Prompts drawn since the start of the run."""
        return self._epoch * self._num_prompts + self._position

    def __next__(self) -> list[Draw]:
        begin, left = self._position, self._num_prompts - self._position
        end = begin + (
            next_batch_size(left, self._num_per_step) if self._even else min(left, self._num_per_step)
        )
        draws = [Draw(self._order[position], position, self._epoch) for position in range(begin, end)]
        if end == self._num_prompts:
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._order_of(self._epoch)
        else:
            self._position = end
        return draws

    def state_dict(self) -> dict[str, Any]:
        """The place in the order, as plain JSON values."""
        return {"epoch": self._epoch, "position": self._position, **self._guard}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where the saved one was; `num_per_step` may have changed.

        Raises:
            ValueError: the state is of other data or another order.
        """
        for name, value in self._guard.items():
            if state[name] != value:
                raise ValueError(
                    f"the checkpoint's data had {name} = {state[name]}, now it is {value}: go on with "
                    "the same files and model.seed, or start anew in another exp_manager.explicit_log_dir"
                )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> list[int]:
        order = list(range(self._num_prompts))
        if self._shuffle:
            # Seeded by text: Python hashes it with SHA-512, so neighbouring seeds give unrelated orders.
            random.Random(f"prompts {self._seed} {epoch}").shuffle(order)
        return order
