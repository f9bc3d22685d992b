"""An order of prompts, or of rows, whose place can be saved exactly.

No torch: the order of an epoch comes from a seed and a generator of its own, so that nothing else
that draws random numbers can disturb it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rs_aligner.batching import next_batch_size
from rs_aligner.data.shares import Share, names, shuffled, stream, turns


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
    so the state is two numbers, and what guards them. Where files have shares, an epoch is as long, and has
    so much of each (`shares.py`).

    Args:
        num_prompts: how many prompts there are.
        num_per_step: how many a step takes, at most.
        seed: of the order.
        shuffle: False keeps the order of the files.
        even: whether an epoch is cut into equal draws. For draws that are batches of an optimizer step.
        shares: of the files that the prompts come from, in their order; none where every prompt comes once.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self,
        num_prompts: int,
        num_per_step: int,
        *,
        seed: int,
        shuffle: bool = True,
        even: bool = False,
        shares: Sequence[Share] = (),
    ) -> None:
        if num_prompts < 1 or num_per_step < 1:
            raise ValueError(
                f"needs at least one prompt and one per step, got {num_prompts} and {num_per_step}"
            )
        self._guard = {"num_prompts": num_prompts, "seed": seed, "shuffle": shuffle}
        self._shares = shares
        if shares:
            assert sum(share.rows for share in shares) == num_prompts
            self._turns = turns(shares, num_prompts)
            self._each = np.bincount(self._turns, minlength=len(shares))
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

    def shares_drawn(self) -> dict[str, float]:
        """What share of the draws since the start of the run each file had, by its name."""
        if not self._shares or not self.consumed_prompts:
            return {}
        here = np.bincount(self._turns[: self._position], minlength=len(self._shares))
        drawn = (self._epoch * self._each + here) / self.consumed_prompts
        return dict(zip(names(self._shares), drawn.tolist(), strict=True))

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

        With other shares, which a run takes up only where it was told to, it goes on at the same place of
        the order that these make.

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

    def _order_of(self, epoch: int) -> Sequence[int]:
        if self._shares:
            return self._mixed(epoch)
        if self._shuffle:
            return shuffled(self._num_prompts, f"prompts {self._seed} {epoch}")
        return range(self._num_prompts)

    def _mixed(self, epoch: int) -> Sequence[int]:
        """The order of files that take turns, each in a stream of its own."""
        order = np.empty(self._num_prompts, np.int64)
        first = 0
        for number, share in enumerate(self._shares):
            each, seed = int(self._each[number]), f"prompts {self._seed} of file {number}"
            drawn = stream(share, seed, epoch * each, each, shuffle=self._shuffle)
            order[self._turns == number] = first + drawn
            first += share.rows
        return array("q", order.tobytes())
