"""The loop: sample, ask the judge, keep the best, train on them, write everything down, repeat.

It knows the policy and the judges by small protocols only. Every rank runs it in step: replicas sample their
share of the prompts, their sources ask the judge, and then every rank holds the whole step and comes to the
same selection. Where rollouts come from is the business of `pool`, that of held-out prompts `held_out`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from rs_aligner import progress, stopping
from rs_aligner.config import TrainRSConfig, num_steps
from rs_aligner.data import DataOrder, Share
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import NOT_TRAINED
from rs_aligner.record.run import Run
from rs_aligner.record.sinks import Sampled
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.rollout import Group, Prompt, TrainingRow
from rs_aligner.sample_request import SamplingFailed
from rs_aligner.selection import Chain, Progress, Selection, chain_of, nothing_kept
from rs_aligner.trainers.agreement import (
    check_inputs,
    check_step,
    digest,
    digest_of_group,
    digest_of_prompts,
    digest_of_rows,
)
from rs_aligner.trainers.bad_steps import BadSteps, told_by_groups
from rs_aligner.trainers.collect import Collector
from rs_aligner.trainers.failures import RanksDiffer
from rs_aligner.trainers.held_out import HeldOut, MetricsOf
from rs_aligner.trainers.journal import Journal
from rs_aligner.trainers.learner import Learner
from rs_aligner.trainers.measure import Teller, drawn_metrics, measure
from rs_aligner.trainers.pace import Pace, is_due, resume, timed_save
from rs_aligner.trainers.pool import Candidates, Pool, SampledRollouts, ScoredRollouts, Source
from rs_aligner.trainers.protocols import Policy
from rs_aligner.trainers.round import Judges

_logger = logging.getLogger("rs_aligner")


class RSData(NamedTuple):
    """What rejection sampling reads; each may be empty.

    Attributes:
        prompts, shares: to train on, and the parts of their files in an epoch, where these have weights.
        validation: held-out prompts, never trained on.
        scored: groups to train on instead of sampling; there are no prompts then.
        anchors: supervised rows to mix in, in the order in which they are taken.
        metrics_of: further figures of held-out answers; no data, but brought by the same hands.
    """

    prompts: Sequence[Prompt]
    validation: Sequence[Prompt] = ()
    scored: Sequence[Group] = ()
    anchors: Sequence[TrainingRow] = ()
    metrics_of: MetricsOf | None = None
    shares: Sequence[Share] = ()


class RSTrainer:
    """Rejection sampling fine-tuning.

    Args:
        config: a checked config.
        policy: what is trained.
        judges: who is asked on this rank.
        data: what is trained on, and what is held out; the same on every rank.
        run: the run's folder.
        chain: who is kept; None builds what the config names.
    """

    def __init__(
        self,
        config: TrainRSConfig,
        policy: Policy,
        judges: Judges,
        data: RSData,
        run: Run,
        *,
        chain: Chain | None = None,
    ) -> None:
        self.config, self.policy, self.run = config, policy, run
        self.rs, self.loop, seed = config.model.rs, config.trainer.rs, config.model.seed
        number = len(data.scored or data.prompts)
        self.order = DataOrder(number, self.rs.num_rollout_samples, seed=seed, shares=data.shares)
        collector = Collector(config, policy, judges, is_first=run.is_first)
        speaks, watches = judges.judge is not None, judges.watched is not None
        self.journal = Journal(policy, run, speaks=speaks, watches=watches)
        source: Source = SampledRollouts(self.rs, collector, data.prompts, self.order, self.journal)
        if data.scored:
            source = ScoredRollouts(data.scored, self.order)
        self.pool = Pool(self.rs.pool, source)
        self.learner = Learner(self.rs, policy, data.anchors)
        self.held_out = HeldOut(config, collector, data.validation, self.journal, data.metrics_of)
        self.num_steps = num_steps(config, number)
        self.pace = Pace(policy)
        self.bad = BadSteps(run.folder, self.loop.max_bad_steps, writes=run.is_first)
        self.teller = Teller(self.num_steps, config.model.global_batch_size, run.figures)
        self._unlooked: dict[str, Any] | None = None  # figures of a step that held-out ones still belong to
        self._inputs = {
            "the prompts": digest_of_prompts(data.prompts),
            "the scored rollouts": digest(*map(digest_of_group, data.scored)),
            "the held-out prompts": digest_of_prompts(self.held_out.prompts),
            "the supervised rows": digest_of_rows(data.anchors),
            "the numbers of steps": self.num_steps,
        }
        self.chain = chain or chain_of(self.rs)

    def fit(self) -> None:
        """Train to the end, or until nothing is gained any more; then save and export.

        Raises:
            Stopped: a stop was asked for, or the time is nearly up; on every rank. What was done is saved, if
                there was time, and the run continues there when it is started again.
            FloatingPointError: too many optimizer steps in a row had a loss that is not finite; all is saved.
            JudgeFailed: the judge scored too little of a step; every rank raises it. Nothing of the step is
                trained, what was done before is saved, and the run continues there when it is started again.
            SamplingFailed: nobody samples any more; as above.
            RanksDiffer: the ranks came to different selections, or started from different data; as above.
        """
        check_inputs(self.policy, self._inputs)
        done = self._resume()
        self._behind = self._counters(done)
        try:
            done = self._train(done)
            self.pace.stop_if_asked()
        except stopping.Stopped as stop:
            self.pace.stopped(stop, self._save_behind)
            raise
        except SamplingFailed:
            self._save_behind()
            raise
        self._export(done)

    def _train(self, done: int) -> int:
        """The steps that are left; returns how many are done."""
        while done < self.num_steps and not self.held_out.is_over:
            self.pace.begin_step()
            began = time.monotonic()
            self._behind, step = self._counters(done), done + 1
            progress.enter("sampling", step=step, steps=self.num_steps)
            candidates = self.pool.draw(step)
            if candidates.failure is not None:
                self._stop_before(step, candidates)
            generated = time.monotonic()
            progress.enter("training")
            selection = self._agreed(step, candidates)
            self._write(step, candidates, selection)
            distance = self.learner.distance(candidates, version=done)
            learnt = self.learner.learn(candidates, selection)
            self.bad.look(step, self.learner.stats, told_by_groups(candidates.groups))
            done = self.policy.version = step
            trained = time.monotonic()
            times = self.policy.maximum(
                {
                    "time/weights": candidates.weights_seconds,
                    "time/generate": generated - began - candidates.weights_seconds - candidates.waited,
                    "time/score_wait": candidates.waited,
                    "time/train": trained - generated,
                    "time/step": trained - began,
                }
            )
            self.pool.settle(candidates.groups, selection)
            self.chain.remember(candidates.groups, selection)
            metrics = {
                "step": step,
                "policy_version": self.policy.version,
                **drawn_metrics(self.order),
                "tokens/generated": candidates.new_tokens,
                **measure(candidates, selection, passed_above=self.rs.passed_above, judges=self.rs.judges),
                **distance,
                **learnt,
                **times,
            }
            self.teller.tell(metrics)
            self._look_and_save(step, metrics, stops=self.pace.stop_is_due(step < self.num_steps))
        return done

    def _resume(self) -> int:
        """Continue from the newest checkpoint, or look at held-out prompts first; returns the steps done."""
        counters = resume(self.run, self.policy, self.order)
        saved = self._saved = counters["step"]
        self.journal.begin(saved)
        if saved >= 0:
            self._remember(counters)
            self._unlooked = counters["unlooked"]
            if self._unlooked is not None and (unscored := self._look(saved, self._unlooked)) is not None:
                raise unscored
        elif self._looks:
            progress.enter("validating", step=0, steps=self.num_steps)
            found = self.held_out.measure(0)
            self.run.record({"step": 0, **found})
            if self.loop.patience is not None:
                self._save(self._counters(0))  # the starting policy may turn out to be the best
        if saved >= self.num_steps or self.held_out.is_over:
            _logger.info(
                "nothing left to do: %d of %d steps are done; see trainer.rs.max_epochs and patience",
                *(saved, self.num_steps),
            )
        return max(saved, 0)

    @property
    def _looks(self) -> bool:
        """Whether held-out prompts are looked at."""
        return bool(self.held_out.prompts) and self.loop.val_check_interval is not None

    def _remember(self, counters: dict[str, Any]) -> None:
        """Bring back what a continued run needs besides the checkpoint, from the writing rank's ledger."""
        done = counters["step"]
        self.held_out.load_state_dict(counters["held_out"])
        self.learner.load_state_dict(counters["learner"])
        self.bad.load_state_dict(counters["bad_steps"])
        self.pool.restore(self.journal.everywhere(lambda ledger: self.pool.remembered(ledger, done)), done)
        for step in range(1, done + 1) if self.chain.remembers else ():
            self.chain.restore(self.journal.everywhere(partial(Ledger.kept, step=step)))

    def _counters(self, step: int) -> dict[str, Any]:
        """Where the run is behind a step, as a checkpoint has it."""
        return {
            "step": step,
            "sampler": self.order.state_dict(),
            "held_out": self.held_out.state_dict(),
            "learner": self.learner.state_dict(),
            "bad_steps": self.bad.state_dict(),
            "unlooked": self._unlooked,
        }

    def _save(self, counters: dict[str, Any]) -> None:
        timed_save(lambda: self.run.save(self.policy, counters["step"], counters))
        self._saved = counters["step"]

    def _save_behind(self) -> None:
        """Save what was done last, unless it is saved already."""
        if self._behind["step"] > max(self._saved, 0):
            self._save(self._behind)

    def _stop_before(self, step: int, candidates: Candidates) -> NoReturn:
        """End a run whose judge failed in this step: write it down, untrained, and save what was done."""
        self._write(step, candidates, nothing_kept(candidates.groups, NOT_TRAINED))
        self._save_behind()
        raise JudgeFailed(f"{candidates.failure}; nothing of it was trained")

    def _agreed(self, step: int, candidates: Candidates) -> Selection:
        """Who is kept, the same on every rank."""
        found: Selection | Exception
        progress = Progress(step, self.num_steps, candidates.improve_step, self.rs.pool.improve_steps)
        try:
            found = self.chain.select(candidates.groups, progress)
        except Exception as error:  # perhaps on this rank only, and the others would wait for it
            found = error
        further = {
            "the places in the supervised rows": digest(self.learner.state_dict()),
            "the held-out figures": digest(self.held_out.state_dict()),
        }
        try:
            return check_step(self.policy, step, candidates.groups, found, further)
        except RanksDiffer:
            self._save_behind()
            raise

    def _write(self, step: int, candidates: Candidates, selection: Selection) -> None:
        self.journal.selected(step, candidates.groups, selection, everything=self.rs.brings_all)
        self.run.sampled(step, Sampled(candidates.groups, selection, candidates.by_design()))

    def _look_and_save(self, step: int, metrics: dict[str, Any], *, stops: bool) -> None:
        """Look at held-out prompts and save where it is due; write the step's figures down.

        A run that stops saves first, and looks when it goes on.
        """
        unscored: JudgeFailed | None = None
        last = step == self.num_steps
        looked = self._looks and (is_due(step, self.loop.val_check_interval) or last)
        self._unlooked = metrics if looked else None
        self._behind = self._counters(step)
        if not looked:
            self.run.record(metrics)
        if self.bad.are_too_many:
            self._save_behind()
            raise self.bad.error(step, "trainer.rs.max_bad_steps")
        if stops:
            raise stopping.Stopped(stopping.reason())
        if looked:
            unscored = self._look(step, metrics)
        due = is_due(step, self.loop.save_interval or self.loop.val_check_interval)
        is_best = looked and self.loop.patience is not None and self.held_out.best_step == step
        if due or is_best or last or unscored or self.held_out.is_over:
            self._save(self._counters(step))
        if unscored is not None:
            raise unscored

    def _look(self, step: int, metrics: dict[str, Any]) -> JudgeFailed | None:
        """Look at held-out prompts and write the step's figures down; returns why there are no scores."""
        unscored: JudgeFailed | None = None
        progress.enter("validating", step=step, steps=self.num_steps)
        try:
            metrics |= self.held_out.measure(step)
        except JudgeFailed as error:
            unscored = error
        self._unlooked = None
        self.run.record(metrics)
        return unscored

    def _export(self, done: int) -> None:
        """Leave the policy in `final/`: the best one where the run has `patience`, else the last."""
        best = self.held_out.best_step
        if self.loop.patience is not None and best is not None:
            if best != done:
                self.policy.load(self.run.checkpoint(best))
            _logger.info("final/ is the policy of step %d, the best on held-out prompts", best)
        progress.enter("exporting")
        self.policy.export(self.run.final)
