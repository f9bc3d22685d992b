"""The loop of the trainings that pass over rows: an optimizer step a step, now and then held-out data.

The supervised training of a policy (`sft`) and the training of a reward model (`preference`) say what is
looked at. The trained model is known by a protocol only, and every rank runs the loop in step. Left out on
purpose: packing, and early stopping by anything but a bar.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

from rs_aligner.config import TrainConfig, num_epoch_steps
from rs_aligner.data import DataOrder
from rs_aligner.record.run import Run
from rs_aligner.trainers.measure import training_metrics
from rs_aligner.trainers.pace import is_due, out_of_time, resume
from rs_aligner.trainers.protocols import Trainee

_logger = logging.getLogger("rs_aligner")
SAY_SECONDS = 5.0  # steps are short: not each of them is worth a line

Row = TypeVar("Row")


class EpochTrainer(Generic[Row]):
    """Trains until it is good enough, or to the end.

    Args:
        config: a checked config.
        trainee: what is trained.
        rows: to train on.
        run: the run's folder.
    """

    def __init__(self, config: TrainConfig, trainee: Trainee[Row], rows: Sequence[Row], run: Run) -> None:
        self.loop, self.trainee, self.rows, self.run = config.loop, trainee, rows, run
        self.order = DataOrder(len(rows), config.model.global_batch_size, seed=config.model.seed, even=True)
        self.num_steps = num_epoch_steps(config, len(rows))

    def validate(self, step: int) -> dict[str, float]:
        """Figures of held-out data after a step (0: before the first); empty if there are none."""
        raise NotImplementedError

    def is_good_enough(self, found: dict[str, float]) -> bool:
        """Whether a validation found that nothing more need be learnt."""
        return False

    def fit(self) -> dict[str, float]:
        """Train until it is good enough, the epochs are over or the time is up; then save and export.

        Returns:
            What the last validation found.
        """
        counters = resume(self.run, self.trainee, self.order)
        self.run.open(counters["step"])
        done, found = max(counters["step"], 0), counters.get("validation", {})
        if counters["step"] < 0:
            found = self.validate(0)
            if found:
                self.run.record({"step": 0, **found})
        said = -math.inf
        good_enough = self.is_good_enough(found)
        if good_enough or done >= self.num_steps:
            _logger.info("nothing to train: step %d of %d, held-out figures %s", done, self.num_steps, found)
        while not good_enough and done < self.num_steps:
            self.run.begin_step()
            began = time.monotonic()
            done += 1
            stats = self.trainee.train([self.rows[draw.index] for draw in next(self.order)])
            self.trainee.version = done
            metrics = {
                "step": done,
                "policy_version": done,
                "consumed_prompts": self.order.consumed_prompts,
                **training_metrics(stats),
                **self.trainee.maximum({"time/step": time.monotonic() - began}),
            }
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                _logger.info("step %d/%d  loss %.4f", done, self.num_steps, metrics["loss"])
            last = done == self.num_steps or out_of_time(self.run, self.trainee)
            if is_due(done, self.loop.val_check_interval) or last:
                found = self.validate(done)
                metrics |= found
                good_enough = self.is_good_enough(found)
            self.run.record(metrics)
            interval = self.loop.save_interval or self.loop.val_check_interval
            if is_due(done, interval) or last or good_enough:
                counters = {"step": done, "sampler": self.order.state_dict(), "validation": found}
                self.run.save(self.trainee, done, counters)
            if last:
                break
        self.say_how_it_ended(good_enough, done)
        self.trainee.export(self.run.final)
        return found

    def say_how_it_ended(self, good_enough: bool, done: int) -> None:
        """A line for the log."""
