"""The named points at which the crash tests kill a run: each write, and each thought between two of them."""

from __future__ import annotations

from tests.crash.points import Point

_STEP3, _HELD_OUT3 = r"rollouts/step_000003\.jsonl", r"rollouts/held_out_000003\.jsonl"
OPEN_STEPS, _HELD_OUT_OPEN = r"rollouts/step_\d+\.open/", r"rollouts/held_out_\d+\.open/"
_PARTIAL = r"checkpoints/step_000004\.[0-9a-f]+\.partial"

POINTS = [
    # Starting
    Point("the folder is taken", "rs_aligner.record.start:Start.take", "after"),
    Point("before the policy is loaded", "rs_aligner.policy.policy:MegatronPolicy.__init__"),
    Point("the policy is loaded", "rs_aligner.policy.policy:MegatronPolicy.__init__", "after"),
    Point("before the run's files are opened", "rs_aligner.record.run:Run.open"),
    Point("the run's files are open", "rs_aligner.record.run:Run.open", "after"),
    # Sampling and judging
    Point("a step draws its prompts", "rs_aligner.trainers.pool:SampledRollouts.draw", count=2),
    Point("the first rollout is sampled", "rs_aligner.trainers.round:_Mine.hand_in", count=7),
    Point("some rollouts are handed in", "rs_aligner.trainers.round:_Mine.hand_in", "after", 20),
    Point("all rollouts of a step are handed in", "rs_aligner.trainers.round:_Mine.results", count=2),
    Point("before a line of an open step", "os:write", "before", 5, OPEN_STEPS),
    Point("half a line of an open step", "os:write", "half", 30, OPEN_STEPS),
    Point("behind a line of an open step", "os:write", "after", 40, OPEN_STEPS),
    Point("an open step is not synced", "os:fsync", "before", 2, OPEN_STEPS),
    Point("an open step is synced", "os:fsync", "after", 2, OPEN_STEPS),
    # Selecting
    Point("all is scored", "rs_aligner.trainers.rs:RSTrainer._agreed", count=3),
    Point("the selection is made", "rs_aligner.trainers.rs:RSTrainer._agreed", "after", 3),
    Point("a step's file has no name yet", "os:replace", "before", 1, _STEP3),
    Point("a step's file has its name", "os:replace", "after", 1, _STEP3),
    Point("an open folder is to go", "shutil:rmtree", "before", 2, r"\.open$"),
    Point("an open folder is gone", "shutil:rmtree", "after", 2, r"\.open$"),
    # Training
    Point("before a step is trained", "rs_aligner.trainers.learner:Learner.learn", count=3),
    Point("in the middle of an epoch of batches", "rs_aligner.policy.training:Trainer.step", "after", 5),
    Point("a step is trained", "rs_aligner.trainers.learner:Learner.learn", "after", 3),
    Point("before the figures of a step", "rs_aligner.record.metrics:MetricsFile.append", count=3),
    Point("the figures are not synced", "os:fsync", "before", 4, r"metrics\.jsonl$"),
    Point("the figures of a step are there", "rs_aligner.record.metrics:MetricsFile.append", "after", 3),
    # Held-out prompts
    Point("before the first look at held-out prompts", "rs_aligner.trainers.held_out:HeldOut.measure"),
    Point("half a line of held-out answers", "os:write", "half", 8, _HELD_OUT_OPEN),
    Point("held-out answers have no name yet", "os:replace", "before", 1, _HELD_OUT3),
    Point("held-out answers have their name", "os:replace", "after", 1, _HELD_OUT3),
    Point("held-out prompts are measured", "rs_aligner.trainers.held_out:HeldOut.measure", "after", 2),
    # Saving
    Point("before a checkpoint", "rs_aligner.policy.checkpoint:save"),
    Point("a checkpoint's tensors are to be written", "rs_aligner.policy.checkpoint:_write_tensors"),
    Point("a checkpoint's tensors are written", "rs_aligner.policy.checkpoint:_write_tensors", "after"),
    Point("a file of a checkpoint is not synced", "os:fsync", "before", 2, _PARTIAL),
    Point("a checkpoint has no manifest", "rs_aligner.record.manifest:write"),
    Point("a checkpoint has a manifest", "rs_aligner.record.manifest:write", "after"),
    Point("a checkpoint has no name yet", "pathlib:Path.rename", "before", 1, _PARTIAL),
    Point("a checkpoint has its name", "pathlib:Path.rename", "after", 1, _PARTIAL),
    Point("a checkpoint is written", "rs_aligner.record.run:Run.save", "after"),
    # Ending
    Point("before the policy is exported", "rs_aligner.policy.trainable:Trainable.export"),
    Point("the policy is exported, unnamed", "pathlib:Path.rename", "before", 1, r"final"),
    Point("the policy is exported", "rs_aligner.policy.trainable:Trainable.export", "after"),
    Point("the folder is to be given back", "rs_aligner.record.lease:Lease.give_back"),
]
"""In the order of a run."""

IN_CI = (
    "half a line of an open step",
    "a step's file has no name yet",
    "in the middle of an epoch of batches",
    "the figures are not synced",
    "held-out answers have no name yet",
    "a checkpoint has no name yet",
    "a checkpoint is written",
    "the policy is exported, unnamed",
)
"""Those of the short form."""
