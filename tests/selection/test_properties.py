"""What holds of every selector and of every chain, whatever the step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rs_aligner.config.chain import most_kept
from rs_aligner.config.selection import SelectorConfig
from rs_aligner.rollout import Group, Score
from rs_aligner.selection import KEPT, NOT_SCORED, Progress, Selection, build_chain
from rs_aligner.selection.chain import MAKERS
from tests.selection.steps import CONFIGS, chain, kept, steps

pytestmark = pytest.mark.timeout(120)

SECTIONS = get_args(get_args(SelectorConfig)[0])
SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
WITH_K: dict[str, dict[str, Any]] = {
    "topk": {},
    "diverse": {"n": st.integers(1, 3)},
    "pessimistic": {
        "components": st.just(["first", "second"]),
        "scale": st.sampled_from(["rank", "zscore", "none"]),
        "coefficient": st.sampled_from([None, 0.0, 0.5, 2.0]),
    },
    "distinct_answers": {"pattern": st.sampled_from([None, r"(\d)"])},
}
SELECTORS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    name: st.fixed_dictionaries({"name": st.just(name), **keys})
    for name, keys in {
        **{name: {"k": st.integers(1, 6), **keys} for name, keys in WITH_K.items()},
        "percentile": {
            "start": SHARES,
            "end": SHARES,
            "over": st.sampled_from(["improve_steps", "run"]),
            "above_lowest": st.booleans(),
        },
        "threshold": {"at_least": SHARES},
        "positive": {"above": SHARES},
        "top_fraction": {"fraction": st.sampled_from([0.1, 0.5, 1.0])},
        "median": {},
        "all": {},
        "truncated": {},
        "length": {"min_tokens": st.integers(0, 3), "max_tokens": st.integers(3, 8)},
        "duplicates": {
            "normalized": st.booleans(),
            "against": st.sampled_from(["group", "earlier", "both"]),
        },
        "near_duplicates": {
            "n": st.integers(1, 3),
            "similarity": st.sampled_from([0.3, 0.8, 1.0]),
            "measure": st.sampled_from(["ngram", "edit"]),
        },
        "pass_rate": {"min": SHARES, "max": SHARES},
        "function": {
            "function": st.just("tests.selection.test_properties:short"),
            "kwargs": st.fixed_dictionaries({"characters": st.integers(0, 5)}),
        },
    }.items()
}
ANY = st.one_of(*SELECTORS.values())
EACH = pytest.mark.parametrize("name", SELECTORS)
PROGRESS = st.builds(Progress, st.integers(1, 3), st.just(3), st.integers(0, 2), st.just(3))
slowly = settings(max_examples=40)
each_slowly = settings(max_examples=15)  # of each of 16 selectors, so that a property sees hundreds


def short(
    prompt: str, responses: list[str], rewards: list[float], metadata: dict[str, Any], *, characters: int
) -> list[bool]:
    """A user's function."""
    return [len(response) <= characters for response in responses]


def places(groups: list[Group], selection: Selection) -> set[tuple[str, int]]:
    """The kept rollouts by their prompt's id and their index, wherever they stand."""
    return {(g.prompt.id, g.rollouts[n].index) for g, n in selection.kept(groups)}


def reordered(groups: list[Group], seed: int) -> list[Group]:
    """The same groups with their rollouts in another order."""
    result = []
    for g in groups:
        order = list(range(len(g.rollouts)))
        random.Random(seed).shuffle(order)
        result.append(Group(g.prompt, [g.rollouts[n] for n in order], [g.scores[n] for n in order]))
    return result


@EACH
@each_slowly
@given(data=st.data(), groups=steps(), progress=PROGRESS)
def test_a_selector_keeps_only_what_is_there_and_scored_and_says_why(name, data, groups, progress):
    made = chain(data.draw(SELECTORS[name]))
    selection = made.select(groups, progress)
    widest = max((len(g.rollouts) for g in groups), default=0)
    assert list(selection.keep.shape) == [len(groups), widest]
    reasons = {NOT_SCORED, *(selector.reason for selector in made.selectors)}
    for keep, why, g in zip(selection.keep.tolist(), selection.reasons, groups, strict=True):
        assert len(why) == len(g.rollouts)
        assert not any(keep[len(g.rollouts) :])
        for flag, reason, score in zip(keep, why, g.scores, strict=False):
            assert flag == (reason == KEPT)
            assert (reason == NOT_SCORED) == (not isinstance(score, Score))
            assert reason in reasons | {KEPT}
    counts = selection.reason_counts()
    assert sum(counts.values()) == sum(len(g.rollouts) for g in groups) - sum(map(len, kept(selection)))
    assert len(counts) == len(reasons)


@slowly
@given(selectors=st.lists(ANY, min_size=1, max_size=4), groups=steps(), progress=PROGRESS)
def test_a_longer_chain_keeps_a_part_and_changes_no_earlier_reason(selectors, groups, progress):
    whole = chain(*selectors).select(groups, progress)
    before = chain(*selectors[:-1], {"name": "all"}).select(groups, progress)
    for now, then in zip(whole.reasons, before.reasons, strict=True):
        for reason, earlier in zip(now, then, strict=True):
            assert reason == earlier or earlier == KEPT


@EACH
@each_slowly
@given(data=st.data(), groups=steps(), progress=PROGRESS)
def test_the_same_step_is_selected_alike_each_time(name, data, groups, progress):
    selectors = [data.draw(SELECTORS[name]), data.draw(ANY)]
    first, second = (chain(*selectors).select(groups, progress) for _ in range(2))
    assert first.keep.equal(second.keep)
    assert first.reasons == second.reasons


@EACH
@each_slowly
@given(data=st.data(), groups=steps(), progress=PROGRESS)
def test_the_order_of_groups_plays_no_part(name, data, groups, progress):
    selector, order = data.draw(SELECTORS[name]), data.draw(st.permutations(groups))
    made = chain(selector)
    one, other = made.select(groups, progress), made.select(order, progress)
    if name == "top_fraction":  # the only one that looks beyond a group: of equal rewards the earlier stays
        best = [
            Counter(g.scores[n].reward for g, n in selection.kept(where))
            for selection, where in ((one, groups), (other, order))
        ]
        assert best[0] == best[1]
    else:
        assert places(groups, one) == places(order, other)


@slowly
@given(
    selectors=st.lists(ANY, min_size=1, max_size=3),
    groups=steps(ties=False),
    progress=PROGRESS,
    data=st.data(),
)
def test_without_ties_neither_the_order_of_groups_nor_of_rollouts_plays_a_part(
    selectors, groups, progress, data
):
    made = chain(*selectors)
    once = places(groups, made.select(groups, progress))
    order = data.draw(st.permutations(reordered(groups, data.draw(st.integers(0, 9)))))
    assert places(order, made.select(order, progress)) == once


@pytest.mark.parametrize("name", WITH_K)
@slowly
@given(data=st.data(), groups=steps(), before=st.lists(ANY, max_size=2), progress=PROGRESS)
def test_what_is_kept_with_k_is_kept_with_one_more(name, data, groups, before, progress):
    last = data.draw(SELECTORS[name])
    few = places(groups, chain(*before, last).select(groups, progress))
    more = places(groups, chain(*before, {**last, "k": last["k"] + 1}).select(groups, progress))
    assert few <= more


@slowly
@given(
    groups=steps(),
    one=st.fixed_dictionaries({"name": st.just("top_fraction"), "fraction": st.floats(0.01, 1)}),
    more=st.floats(0.01, 1),
)
def test_a_larger_fraction_keeps_more(groups, one, more):
    assume(more >= one["fraction"])
    progress = Progress(1, 1)
    few = places(groups, chain(one).select(groups, progress))
    assert few <= places(groups, chain({**one, "fraction": more}).select(groups, progress))


@EACH
@each_slowly
@given(data=st.data(), groups=steps(), progress=PROGRESS)
def test_a_step_is_not_changed_by_selecting(name, data, groups, progress):
    before = repr(groups)
    made = chain(data.draw(SELECTORS[name]))
    made.remember(groups, made.select(groups, progress))
    assert repr(groups) == before


@slowly
@given(
    selectors=st.lists(ANY, min_size=1, max_size=4),
    groups=steps(),
    progress=PROGRESS,
    top_n=st.integers(1, 6),
)
def test_a_chain_keeps_no_more_than_the_plan_says(selectors, groups, progress, top_n):
    configs = CONFIGS.validate_python(selectors)
    kept_in_all = build_chain(configs, top_n=top_n).select(groups, progress).keep.sum()
    most = {"top_n": top_n, "num_prompts": len(groups), "num_rollouts": 6}
    assert kept_in_all <= most_kept(configs, **most)
    candidates = sum(len(group.rollouts) for group in groups)  # as where prompts share a budget
    assert kept_in_all <= most_kept(configs, **most, num_candidates=candidates) <= candidates


def test_every_selector_of_the_config_is_made_and_tried():
    names = {get_args(section.model_fields["name"].annotation)[0] for section in SECTIONS}
    assert set(SELECTORS) == names
    assert set(MAKERS) == set(SECTIONS)


@slowly
@given(groups=steps(), progress=PROGRESS, against=st.sampled_from(["earlier", "both"]))
def test_what_is_remembered_is_never_kept_again(groups, progress, against):
    made = chain({"name": "duplicates", "against": against})
    first = made.select(groups, progress)
    made.remember(groups, first)
    again = [
        replace(group, rollouts=[replace(rollout, policy_version=1) for rollout in group.rollouts])
        for group in groups
    ]

    # A text that was only rejected as a double may be kept now; one that was kept may not.
    def texts(selection: Selection, of: Sequence[Group]) -> set[tuple[str, int, str]]:
        return {(g.prompt.id, g.prompt.row, g.rollouts[p].text) for g, p in selection.kept(of)}

    assert not texts(first, groups) & texts(made.select(again, progress), again)
