"""Groups to select from, by hand and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter

from rs_aligner.config.selection import SelectorConfig
from rs_aligner.rollout import Group, Prompt, Rollout, Score, ScoreFailure
from rs_aligner.selection import Chain, Progress, Selection, build_chain

FAILED = ScoreFailure("timed out")
NOW = Progress(step=1, num_steps=1)
CONFIGS: TypeAdapter[tuple[SelectorConfig, ...]] = TypeAdapter(tuple[SelectorConfig, ...])


def group(
    rewards: Sequence[float | None],
    texts: Sequence[str] = (),
    tokens: Sequence[Sequence[int]] = (),
    truncated: Sequence[int] = (),
    version: int = 0,
    **prompt: Any,
) -> Group:
    """A group with these rewards, None where the judge failed; texts and tokens differ unless given."""
    texts = texts or [f"text {n}" for n in range(len(rewards))]
    tokens = tokens or [(n,) for n in range(len(rewards))]
    return Group(
        Prompt(prompt.pop("id", "p"), "prompt", (1,), **prompt),
        [
            Rollout(0, n, tuple(t), text, "length" if n in truncated else "stop", version)
            for n, (text, t) in enumerate(zip(texts, tokens, strict=True))
        ],
        [FAILED if reward is None else Score(reward) for reward in rewards],
    )


def with_views(score: Score, first: float, second: float) -> Score:
    """A score of a judge that has two judges as components."""
    return replace(score, components={"first": first, "second": second})


def chain(*selectors: dict[str, Any], top_n: int = 1) -> Chain:
    """The chain that the config makes of these sections."""
    return build_chain(CONFIGS.validate_python(selectors), top_n=top_n)


def kept(selection: Selection) -> list[list[int]]:
    """The places that are kept of each group."""
    return [[place for place, keep in enumerate(row) if keep] for row in selection.keep.tolist()]


def select(groups: Sequence[Group], *selectors: dict[str, Any], progress: Progress = NOW) -> list[list[int]]:
    """The places that a chain keeps of each group."""
    return kept(chain(*selectors).select(groups, progress))


@st.composite
def steps(draw: st.DrawFn, ties: bool = True) -> list[Group]:
    """A step of groups of any size, without or with rewards that are equal.

    Few words and tokens, so that texts are equal or alike often. Scores have two components, `first`, which
    is the reward, and `second`.
    """
    sizes = draw(st.lists(st.integers(0, 6), max_size=4))
    values = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]) if ties else st.floats(-1e6, 1e6, width=32)
    rewards = draw(st.lists(values, min_size=sum(sizes), max_size=sum(sizes), unique=not ties))
    seconds = draw(st.lists(values, min_size=sum(sizes), max_size=sum(sizes)))
    groups = []
    for row, size in enumerate(sizes):
        mine = [rewards.pop() for _ in range(size)]
        scored = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        responses = draw(st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=size, max_size=size))
        ended = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        texts = [" ".join(["a", "A", "1", "2"][token] for token in tokens[:3]) for tokens in responses]
        groups.append(
            group(
                [reward if flag else None for reward, flag in zip(mine, scored, strict=True)],
                texts or (),
                responses,
                [n for n, flag in enumerate(ended) if not flag],
                id=f"p{row}",
                row=row,
            )
        )
        groups[-1].scores = [
            with_views(score, score.reward, seconds.pop()) if isinstance(score, Score) else score
            for score in groups[-1].scores
        ]
    return groups
