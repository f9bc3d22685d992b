"""From a selection to optimizer steps: what needs the policy, and what a run has to remember of it.

What each row weighs and how rows are mixed is in `objective`. Remembered are the place in the supervised
rows, and log-probabilities under the starting policy, which a rollout needs only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rs_aligner.config import RSConfig
from rs_aligner.objective.rows import mix, objective_metrics, training_rows, with_reference
from rs_aligner.proof.chance import kl_to_start
from rs_aligner.rollout import Rollout, TrainingRow
from rs_aligner.selection import Selection
from rs_aligner.trainers.measure import training_metrics
from rs_aligner.trainers.pool import Candidates
from rs_aligner.trainers.protocols import Policy, Stats

LogProbs = tuple[float, ...]


class Learner:
    """Trains the policy on what was kept.

    Args:
        rs: the `model.rs` section.
        policy: what is trained.
        anchors: supervised rows to mix in, in the order in which they are taken.
    """

    def __init__(self, rs: RSConfig, policy: Policy, anchors: Sequence[TrainingRow] = ()) -> None:
        self.rs, self.policy, self.anchors = rs, policy, anchors
        self._next_anchor = 0
        self.stats: list[Stats] = []
        """Of the optimizer steps of the last `learn`."""
        self._reference: dict[tuple[tuple[int, ...], tuple[int, ...]], LogProbs] = {}

    def learn(self, candidates: Candidates, selection: Selection) -> dict[str, float]:
        """Train on the kept rollouts; a collective.

        Returns:
            Figures of the optimizer steps and of the objective.
        """
        objective, pool = self.rs.objective, self.rs.pool
        # What was sampled by others, who may have had other weights, tells nothing of this run's decoder.
        version = None if self.rs.offline else self.policy.version
        rows = training_rows(candidates.groups, selection, objective, version=version)
        figures = objective_metrics(candidates.groups, selection, objective)
        if objective.kl:
            rows = with_reference(rows, self._reference_log_probs(rows))
        if pool.restart and candidates.improve_step == 0:
            self.policy.restart()
        self.stats = []
        for _ in range(pool.passes):
            mixed, self._next_anchor = mix(rows, self.anchors, objective.anchor.share, self._next_anchor)
            self.stats += self.policy.train(mixed)
        return figures | training_metrics(self.stats)

    def distance(self, candidates: Candidates, version: int) -> dict[str, float]:
        """How far the policy of a version is from the one that the run started from; a collective.

        Measured on the first rollouts of each prompt that this version sampled, `model.rs.kl_samples` in all.
        """
        if not self.rs.measures_distance:
            return {}
        rollouts: list[tuple[TrainingRow, Rollout]] = []
        places = candidates.by_design()
        for depth in range(max(map(len, places), default=0)):
            for group, part in zip(candidates.groups, places, strict=True):
                if depth < len(part) and len(rollouts) < self.rs.kl_samples:
                    rollout = group.rollouts[part[depth]]
                    if rollout.policy_version == version and rollout.log_probs:
                        rollouts.append((TrainingRow(group.prompt.token_ids, rollout.token_ids), rollout))
        if not rollouts:
            return {}
        reference = self.policy.reference_log_probs([row for row, _ in rollouts])
        return kl_to_start([rollout for _, rollout in rollouts], reference)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold, as plain JSON values."""
        return {"next_anchor": self._next_anchor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the saved one was."""
        self._next_anchor = state["next_anchor"]

    def _reference_log_probs(self, rows: Sequence[TrainingRow]) -> list[LogProbs]:
        """Under the starting policy, computed for those rows that the step before did not have."""
        keys = [(row.prompt, row.response) for row in rows]
        unknown = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._reference}
        found = self.policy.reference_log_probs(list(unknown.values()))
        known = self._reference | dict(zip(unknown, found, strict=True))
        self._reference = {key: known[key] for key in keys}
        return [known[key] for key in keys]
