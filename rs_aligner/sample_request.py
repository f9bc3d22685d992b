"""What a policy is asked to sample: which prompts, how many rollouts of each, how, and from which seeds.

One noun for the loops, which ask, for the policy, which shares it out among the replicas, for the decoder,
and for the fakes that stand in for them in tests. Plain data, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rs_aligner.config import LengthParams, SamplingParams
from rs_aligner.rollout import Prompt


class SamplingFailed(ConnectionError):
    """Nobody samples what was asked for, and waiting did not help; the message says why."""


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
        numbers: which prompt of its step each one is, where only some of the step's are asked; empty for all.
        now: whether only the policy's present weights may answer, and none that servers have of earlier ones.
        known: seed and policy version of the rollouts that are there already, by the prompt's place and the
            index. One whose seed and version a new one would have, too, is not sampled.
    """

    prompts: Sequence[Prompt]
    num_rollouts: int
    sampling: SamplingParams
    lengths: LengthParams
    step: int = 0
    wave_size: int | None = None
    first_index: int = 0
    numbers: Sequence[int] = ()
    now: bool = False
    known: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    @property
    def indices(self) -> range:
        """The indices of a prompt's rollouts."""
        return range(self.first_index, self.first_index + self.num_rollouts)

    def number(self, place: int) -> int:
        """Which prompt of the step the one at this place is."""
        return self.numbers[place] if self.numbers else place

    def lacks(self, place: int, index: int, *, seed: int, policy_version: int) -> bool:
        """Whether this rollout is to be sampled."""
        return self.known.get((place, index)) != (seed, policy_version)
