"""Training a reward model on preference pairs: the Bradley-Terry loss, held-out loss and accuracy.

A step is one optimizer step on `global_batch_size` pairs. Like the other trainers it knows the model by a
protocol only. Left out on purpose: stopping at an accuracy; the best checkpoint stays (`monitor`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from rs_aligner.config import TrainRewardModelConfig
from rs_aligner.data import Share
from rs_aligner.record.run import Run
from rs_aligner.rollout import PreferencePair
from rs_aligner.trainers.epochs import EpochTrainer
from rs_aligner.trainers.protocols import Trainee

_logger = logging.getLogger("rs_aligner")


class RewardModel(Trainee[PreferencePair], Protocol):
    """A reward model as its trainer sees it; its stats have the figure `accuracy`."""

    def evaluate(self, pairs: Sequence[PreferencePair]) -> dict[str, float]:
        """How held-out pairs are ordered: `loss`, `accuracy`, `reward_mean`, `reward_std`."""
        ...


class PreferenceTrainer(EpochTrainer[PreferencePair]):
    """Training on pairs, to the end.

    Args:
        config: a checked config.
        model: what is trained.
        pairs: to train on.
        validation: held-out pairs, never trained on; may be none.
        run: the run's folder.
        shares: of the files to train on, where they have weights.
    """

    section = "rm"

    def __init__(
        self,
        config: TrainRewardModelConfig,
        model: RewardModel,
        pairs: Sequence[PreferencePair],
        validation: Sequence[PreferencePair],
        run: Run,
        shares: Sequence[Share] = (),
    ) -> None:
        super().__init__(config, model, pairs, run, shares)
        self.model, self.validation = model, validation

    def validate(self, step: int) -> dict[str, float]:
        """Loss and accuracy on the held-out pairs, and mean and spread of the rewards there."""
        if not self.validation or self.loop.val_check_interval is None:
            return {}
        found = self.model.evaluate(self.validation)
        when = f"after step {step}" if step else "before the first step"
        _logger.info(
            "validation %s: %.1f %% of %d pairs ordered right, loss %.4f",
            *(when, 100 * found["accuracy"], len(self.validation), found["loss"]),
        )
        return {f"validation/{name}": value for name, value in found.items()}
