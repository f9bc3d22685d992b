"""What comes of an optimizer step: its figures, or that it was not made."""

from __future__ import annotations

from dataclasses import dataclass, field


class NotFinite(FloatingPointError):
    """Loss or gradient of a global batch is not finite; on every rank, before any weight was touched.

    Attributes:
        loss: of the batch.
    """

    def __init__(self, loss: float, gradient: str) -> None:
        super().__init__(
            f"the loss is {loss} and the gradient {gradient}; the weights were left as they were"
        )
        self.loss = loss


@dataclass(frozen=True, slots=True)
class StepStats:
    """What an optimizer step reports.

    Attributes:
        loss: of the global batch.
        grad_norm: of the global gradient, before clipping.
        learning_rate: that the step was made with.
        figures: of the objective's terms, where they play a part; before the step.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def skipped(self) -> tuple[()]:
        """No rows: the step was applied."""
        return ()
