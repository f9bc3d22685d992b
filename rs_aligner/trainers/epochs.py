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
from typing import Any, ClassVar, Generic, TypeVar

from rs_aligner import progress, stopping
from rs_aligner.config import TrainConfig, num_epoch_steps
from rs_aligner.data import DataOrder, Share
from rs_aligner.record.run import Run
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.sample_request import SamplingFailed
from rs_aligner.trainers.bad_steps import BadSteps
from rs_aligner.trainers.measure import drawn_metrics, training_metrics
from rs_aligner.trainers.pace import Pace, is_due, resume, timed_save
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
        shares: of the files that the rows come from, where they have weights.
    """

    section: ClassVar[str]
    """The loop's, below `trainer`."""

    def __init__(
        self,
        config: TrainConfig,
        trainee: Trainee[Row],
        rows: Sequence[Row],
        run: Run,
        shares: Sequence[Share] = (),
    ) -> None:
        self.loop, self.trainee, self.rows, self.run = config.loop, trainee, rows, run
        each, seed = config.model.global_batch_size, config.model.seed
        self.order = DataOrder(len(rows), each, seed=seed, even=True, shares=shares)
        self.num_steps = num_epoch_steps(config, len(rows))
        self.pace = Pace(trainee)
        self.bad = BadSteps(run.folder, self.loop.max_bad_steps, writes=run.is_first)

    def validate(self, step: int) -> dict[str, float]:
        """Figures of held-out data after a step (0: before the first); empty if there are none."""
        raise NotImplementedError

    def is_good_enough(self, found: dict[str, float]) -> bool:
        """Whether a validation found that nothing more need be learnt."""
        return False

    def fit(self) -> dict[str, float]:
        """Train until it is good enough, or the epochs are over; then save and export.

        Returns:
            What the last validation found.

        Raises:
            Stopped: a stop was asked for, or the time is nearly up; on every rank. What was done is saved, if
                there was time, and the run continues there when it is started again.
            JudgeFailed: the judge scored nothing of a validation; every rank raises it, and all is saved.
            SamplingFailed: nothing samples the answers to be judged; the same.
        """
        counters = resume(self.run, self.trainee, self.order)
        self._saved = counters["step"]
        self.bad.load_state_dict(counters.get("bad_steps", 0))
        self._behind = {"step": 0}
        self.run.open(counters["step"])
        try:
            found = self._train(counters)
            self.pace.stop_if_asked()
        except stopping.Stopped as stop:
            self.pace.stopped(stop, self._save_behind)
            raise
        except (JudgeFailed, SamplingFailed):  # in a validation: it is made anew when the run goes on
            self._save_behind()
            raise
        progress.enter("exporting")
        self.trainee.export(self.run.final)
        return found

    def _train(self, counters: dict[str, Any]) -> dict[str, float]:
        """The steps that are left; returns what the last validation found."""
        done, found = max(counters["step"], 0), counters.get("validation", {})
        if counters["step"] < 0:
            found = self._look(0, {"step": 0})
        elif counters["unlooked"] is not None:
            found = self._look(done, counters["unlooked"])
        said = -math.inf
        good_enough = self.is_good_enough(found)
        if good_enough or done >= self.num_steps:
            _logger.info("nothing to train: step %d of %d, held-out figures %s", done, self.num_steps, found)
        while not good_enough and done < self.num_steps:
            self.pace.begin_step()
            began = time.monotonic()
            done += 1
            progress.enter("training", step=done, steps=self.num_steps)
            stats = self.trainee.train([self.rows[draw.index] for draw in next(self.order)])
            self.trainee.version = done
            self.bad.look(done, stats)
            metrics = {
                "step": done,
                "policy_version": done,
                **drawn_metrics(self.order),
                **training_metrics(stats),
                **self.trainee.maximum({"time/step": time.monotonic() - began}),
            }
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                loss = f"{metrics['loss']:.4f}" if "loss" in metrics else "not finite"
                _logger.info("step %d/%d  loss %s", done, self.num_steps, loss)
            last = done == self.num_steps
            looks = is_due(done, self.loop.val_check_interval) or last
            if not looks:
                self.run.record(metrics)
            # A run that stops saves first, and looks when it goes on.
            self._behind = self._counters(done, found, unlooked=metrics if looks else None)
            if self.bad.are_too_many:
                self._save_behind()
                raise self.bad.error(done, f"trainer.{self.section}.max_bad_steps")
            if self.pace.stop_is_due(another=not last):
                raise stopping.Stopped(stopping.reason())
            if looks:
                found = self._look(done, metrics)
                good_enough = self.is_good_enough(found)
                self._behind = self._counters(done, found)
            interval = self.loop.save_interval or self.loop.val_check_interval
            if is_due(done, interval) or last or good_enough:
                self._save_behind()
        self.say_how_it_ended(good_enough, done)
        return found

    def _look(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Look at held-out data and write the step's figures down; returns what was found."""
        progress.enter("validating", step=step, steps=self.num_steps)
        found = self.validate(step)
        if step or found:
            self.run.record(metrics | found)
        return found

    def _counters(
        self, step: int, found: dict[str, float], unlooked: dict[str, float] | None = None
    ) -> dict[str, Any]:
        """Where the run is behind a step; `unlooked` are its figures where held-out ones are to come."""
        return {
            "step": step,
            "sampler": self.order.state_dict(),
            "validation": found,
            "bad_steps": self.bad.state_dict(),
            "unlooked": unlooked,
        }

    def _save_behind(self) -> None:
        """Save what was done last, unless it is saved already."""
        if self._behind["step"] > max(self._saved, 0):
            timed_save(lambda: self.run.save(self.trainee, self._behind["step"], self._behind))
            self._saved = self._behind["step"]

    def say_how_it_ended(self, good_enough: bool, done: int) -> None:
        """A line for the log."""
