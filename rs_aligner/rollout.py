"""The nouns of rejection sampling: prompt, rollout, score, group.

Plain data, no torch. A group is built from one prompt and its N rollouts and is never found by
comparing text, so two rows with the same text are two groups. A judge's failure is a type of
its own, so that it cannot be mistaken for a number.

Words that mean one thing each, here and in all rooms:

    step             sample, judge, select, train; `version` of a policy: finished steps
    optimizer step   one update of the weights, on a batch of rows; a step makes some, or none
    row              what is trained on (`TrainingRow`), or a line of a file; not a rollout
    order, position  in which prompts and rows come in an epoch (`data.order`), and where in it one comes
    place            an index into a list: of a rollout in its group, of a group in its step
    rank, replica    a process of a run; a copy of the model, on one rank or several (data parallelism)
    first, source    rank 0, which writes and shows; the rank that speaks for its replica (`is_source`)
    policy, trainee  the model that samples and is trained; whatever is trained, a reward model too
    sampler          a policy that is only sampled from
    judge, watched   what scores (`reward.protocol.Judge`; served: `ServedJudge`); a second one, not heeded
    stats            what an optimizer step reports
    figure, metrics  a number with a name; those of a step, as `metrics.jsonl` has them

Tensors and arrays carry their shape in their names where it helps, as in `keep_PN`: P prompts of a step, N
rollouts of a prompt, K values of k, B rows of a batch, S tokens of a row, T = S - 1 next tokens, V tokens of
a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rs_aligner.precision import Precision, rounded

FinishReason = Literal["stop", "length"]

PREFILLED = "prefilled"
"""The key of a prompt's metadata with what its answer begins with already, at the end of the prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt file, ready to be fed to the policy.

    Attributes:
        id: the row's own id, or `file:line`.
        text: the text as fed to the model (template or chat template applied).
        token_ids: the tokens as fed to the model, a leading begin token included.
        metadata: the whole data row; and under `PREFILLED` what the chat template, or the row's last message,
            begins the answer with, if anything.
        position: the prompt's place in the epoch's order (part of the rollouts' seeds).
        row: the prompt's place in the set of prompts, the same in every epoch; -1 where it has none.
    """

    id: str
    text: str
    token_ids: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    position: int = 0
    row: int = -1


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer to one prompt.

    Attributes:
        group: which prompt of the step it answers, counted from 0 in data order.
        index: which of the prompt's N rollouts it is, counted from 0.
        token_ids: the response tokens; the ending token, if any, is the last of them.
        text: the response without end tokens and end strings.
        finish_reason: `stop` (end token or end string) or `length`.
        policy_version: number of finished training steps of the policy that sampled it.
        seed: what its randomness comes from.
        log_probs: log-probability of each response token under the distribution before
            temperature and filters, same length as `token_ids`.
        by_design: whether it would have been sampled whatever the scores of others were. What is sampled on
            because others were not good enough tells of a mean, or of pass@k, with a bias.
    """

    group: int
    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int = 0
    seed: int = 0
    log_probs: tuple[float, ...] = ()
    by_design: bool = True


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A prompt with the response to learn, as token ids; the ending token belongs to the response.

    Attributes:
        prompt, response: token ids.
        weight: what the row's log-likelihood is multiplied by: 1 for a response that is simply learnt, the
            advantage (which may be negative) under a policy gradient.
        sampled_log_probs: of the response tokens under the policy that sampled them, for importance ratios;
            empty for none.
        reference_log_probs: the same under the starting policy, for a KL term; empty for none.
        decoder_log_probs: as the decoder noted them with the weights that the policy has, to be compared with
            the trainer's; empty for none. Nothing is learnt from them, and rows are equal whatever they are.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    weight: float = 1.0
    sampled_log_probs: tuple[float, ...] = ()
    reference_log_probs: tuple[float, ...] = ()
    decoder_log_probs: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to a prompt, one better than the other: token ids, the prompt's and an ending included."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class Score:
    """A finite reward, with named components where the judge gives them.

    Attributes:
        reward: higher is better.
        components: named parts of the reward.
        judge: the judge's fingerprint, where it has one. Two scores are equal whoever gave them.
        precision: the type in which the judge answered, which is that of a comparison with a bar.

    Raises:
        ValueError: the reward or a component is NaN or infinite.
    """

    reward: float
    components: dict[str, float] = field(default_factory=dict)
    judge: str = field(default="", compare=False)
    precision: Precision = field(default="float64", compare=False)

    def __post_init__(self) -> None:
        for name, value in {"reward": self.reward, **self.components}.items():
            if not math.isfinite(value):
                raise ValueError(f"a score must be finite, but {name} is {value}")

    def component(self, name: str) -> float | None:
        """A component; for `reward` the reward itself, unless one has that name. None if there is none."""
        return self.components.get(name, self.reward if name == "reward" else None)

    def reaches(self, bar: float) -> bool:
        """Whether the reward is at least `bar`, as the judge's type can tell."""
        return rounded(self.reward, self.precision) >= rounded(bar, self.precision)

    def exceeds(self, bar: float) -> bool:
        """Whether the reward is above `bar`, as the judge's type can tell."""
        return rounded(self.reward, self.precision) > rounded(bar, self.precision)


LATE = "(judge.time_limit)"
"""Ends the reason of a failure that came by the clock; so it is counted, whatever way the reason came."""


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """The judge gave no usable answer, and why. Never a number."""

    reason: str

    @property
    def is_late(self) -> bool:
        """Whether the judge took longer than it may over the row."""
        return self.reason.endswith(LATE)


@dataclass(slots=True)
class Group:
    """A prompt with its rollouts and what the judge said of each, in rollout order.

    `watched` is what a second judge said, whose scores decide nothing; empty where there is none.
    """

    prompt: Prompt
    rollouts: list[Rollout]
    scores: list[Score | ScoreFailure]
    watched: list[Score | ScoreFailure] = field(default_factory=list)

    def only(self, places: Sequence[int]) -> Group:
        """A group of some of its rollouts, in the order of `places`, with what the judges said of them."""
        return Group(
            self.prompt,
            [self.rollouts[place] for place in places],
            [self.scores[place] for place in places],
            [self.watched[place] for place in places] if self.watched else [],
        )

    def watched_scores(self) -> list[Score | ScoreFailure]:
        """What the second judge said of each rollout; failures where there was none."""
        return self.watched or [ScoreFailure("not watched")] * len(self.rollouts)
