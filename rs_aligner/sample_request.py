"""What a policy is asked to sample: which prompts, how many rollouts of each, how, and from which seeds.

One noun for the loops, which ask, for the policy, which shares it out among the replicas, for the decoder,
and for the fakes that stand in for them in tests. Plain data, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rs_aligner.config import LengthParams, SamplingParams
from rs_aligner.rollout import Prompt


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Rollouts to be sampled.

    Attributes:
        prompts: the whole step's, in data order, the same on every rank.
        num_rollouts: N for each prompt.
        sampling, lengths: how to sample.
        step: part of the rollouts' seeds.
        wave_size: prompts decoded together on a replica; None for all of its share.
        first_index: index of each prompt's first rollout, above 0 where it has some already.
    """

    prompts: Sequence[Prompt]
    num_rollouts: int
    sampling: SamplingParams
    lengths: LengthParams
    step: int = 0
    wave_size: int | None = None
    first_index: int = 0

    @property
    def indices(self) -> range:
        """The indices of a prompt's rollouts."""
        return range(self.first_index, self.first_index + self.num_rollouts)
