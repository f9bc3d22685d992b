"""`model.rs.objective`: what is minimised over the rollouts that were kept."""

from __future__ import annotations

from rs_aligner.config.base import Section


class ObjectiveConfig(Section):
    """What is minimised; the default is the plain recipe."""
