"""The bars 0.01 to 0.99, and everything that holds a reward against one.

`beaten` asks each place in the package where a reward meets a number of the config, so that a service's test
and a fake's look at the same places.
"""

from __future__ import annotations

from rs_aligner.config import UntilConfig
from rs_aligner.config import selection as conf
from rs_aligner.proof.chance import proof_metrics
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Progress, build_chain
from rs_aligner.trainers.collect import _wants_more

BARS = [number / 100 for number in range(1, 100)]
Result = Score | ScoreFailure


def group_of(*scores: Result) -> Group:
    """A group with these scores, in texts that differ."""
    rollouts = [Rollout(0, index, (index + 5,), f"text {index}", "stop") for index in range(len(scores))]
    return Group(Prompt("p", "prompt", (1,)), rollouts, list(scores))


def wrong_places(score: Result, bar: float) -> list[str]:
    """The places at which a reward that equals its bar does not count as one that reaches it, and no more."""
    group = group_of(score)
    threshold = conf.ThresholdConfig(name="threshold", at_least=bar)
    positive = conf.PositiveConfig(name="positive", above=bar)
    solved = conf.PassRateConfig(name="pass_rate", min=0.5, max=None, above=bar)
    chains = {
        "min_reward": (build_chain([], top_n=1, min_reward=bar), True),
        "threshold": (build_chain([threshold], top_n=1), True),
        "positive": (build_chain([positive], top_n=1), False),
        "pass_rate": (build_chain([solved], top_n=1), False),
    }
    wrong = [
        name
        for name, (chain, is_kept) in chains.items()
        if bool(chain.select([group], Progress(1, 1)).keep.any()) != is_kept
    ]
    if _wants_more(group, UntilConfig(accepted=1, at_least=bar)):
        wrong.append("until.at_least")
    everything = build_chain([conf.AllConfig(name="all")], top_n=1).select([group], Progress(1, 1))
    if proof_metrics([group], everything, passed_above=bar)["pass_at/1"] != 0:
        wrong.append("passed_above")
    return wrong


def beaten(scores: list[Result]) -> dict[float, list[str]]:
    """The bars that the score of the same place, which equals them, does not meet as it should, and where."""
    found = {bar: wrong_places(score, bar) for bar, score in zip(BARS, scores, strict=True)}
    return {bar: wrong for bar, wrong in found.items() if wrong}
