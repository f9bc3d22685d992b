"""Files with weights: an epoch keeps its length, and each file has its share of it, from its own stream."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_aligner.commands import attempt
from rs_aligner.commands.build import read_tokenizer
from rs_aligner.commands.run_data import read_rs_data
from rs_aligner.config import TrainRSConfig, changes
from rs_aligner.config.data import DataPrefix
from rs_aligner.data import DataOrder, Share, shares_of
from rs_aligner.data.shares import lines, names, turns
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(60)
KEY = "model.data.data_prefix.train"


def shares(weights: Sequence[float], rows: Sequence[int]) -> list[Share]:
    files = [f"{number}.jsonl" for number in range(len(rows))]
    return shares_of(KEY, files, weights, rows)


def file_of(index: int, made: Sequence[Share]) -> int:
    for number, share in enumerate(made):
        if index < share.rows:
            return number
        index -= share.rows
    raise AssertionError


mixes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(mix=mixes, per_step=st.integers(1, 30))
def test_each_file_has_its_share_but_for_a_row_wherever_an_epoch_is_cut(mix: Any, per_step: int) -> None:
    weights, rows = zip(*mix, strict=True)
    number = sum(rows)
    if any(weight / sum(weights) * number < 1 for weight in weights):
        return
    made = shares(weights, rows)
    order = DataOrder(number, per_step, seed=3, shares=made)
    for epoch in range(3):
        seen = Counter[int]()
        drawn = [draw for _ in range(order.steps_per_epoch) for draw in next(order)]
        assert [draw.position for draw in drawn] == list(range(number))
        for place, draw in enumerate(drawn, start=1):
            assert draw.epoch == epoch
            seen[file_of(draw.index, made)] += 1
            for file, share in enumerate(made):
                assert abs(seen[file] - share.share * place) < 1


@settings(max_examples=40, deadline=None)
@given(mix=mixes, shuffle=st.booleans())
def test_every_row_of_a_file_comes_before_one_comes_again(mix: Any, shuffle: bool) -> None:
    weights, rows = zip(*mix, strict=True)
    if any(weight / sum(weights) * sum(rows) < 1 for weight in weights):
        return
    made = shares(weights, rows)
    order = DataOrder(sum(rows), 7, seed=5, shuffle=shuffle, shares=made)
    streams: dict[int, list[int]] = {}
    while order.consumed_prompts < 4 * sum(rows):
        for draw in next(order):
            streams.setdefault(file_of(draw.index, made), []).append(draw.index)
    first = 0
    for file, share in enumerate(made):
        drawn, whole = streams[file], set(range(first, first + share.rows))
        for begin in range(0, len(drawn) - share.rows + 1, share.rows):
            assert set(drawn[begin : begin + share.rows]) == whole
        first += share.rows


def test_a_file_comes_again_in_another_order_and_a_seed_makes_another_one() -> None:
    def stream(seed: int) -> list[int]:
        order = DataOrder(40, 40, seed=seed, shares=shares([3, 1], [10, 30]))
        return [draw.index for draw in next(order) if draw.index < 10]

    one = stream(1)
    assert len(one) == 30
    assert one[:10] != one[10:20] != one[20:]
    assert one == stream(1) != stream(2)


@pytest.mark.parametrize("num_steps", [0, 1, 5, 6, 7, 13, 40])
@pytest.mark.parametrize("even", [False, True])
def test_a_resumed_order_goes_on_as_if_it_had_never_stopped(num_steps: int, even: bool) -> None:
    made = shares([0.2, 0.5, 0.3], [20, 3, 12])
    whole, resumed = (DataOrder(35, 6, seed=3, even=even, shares=made) for _ in range(2))
    for _ in range(num_steps):
        next(whole)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert resumed.shares_drawn() == whole.shares_drawn()
    assert [next(resumed) for _ in range(9)] == [next(whole) for _ in range(9)]


def test_a_place_is_two_numbers_with_weights_too() -> None:
    """A run that may go on with other weights is at the same place of their order."""
    made = [DataOrder(30, 4, seed=1, shares=shares(weights, [20, 10])) for weights in ([1, 1], [1, 2])]
    for _ in range(9):
        next(made[0])
        next(made[1])
    assert made[0].state_dict() == made[1].state_dict()
    anew = DataOrder(30, 4, seed=1, shares=shares([1, 2], [20, 10]))
    anew.load_state_dict(made[0].state_dict())
    assert next(anew) == next(made[1])


def test_the_share_that_was_drawn_is_counted() -> None:
    order = DataOrder(40, 10, seed=1, shares=shares([3, 1], [20, 20]))
    assert order.shares_drawn() == {}
    for _ in range(6):
        next(order)
        told = order.shares_drawn()
        assert told["0.jsonl"] * order.consumed_prompts == pytest.approx(0.75 * order.consumed_prompts, abs=1)
        assert sum(told.values()) == pytest.approx(1)


def test_files_of_one_name_are_told_by_their_paths() -> None:
    assert names([Share("a/x.jsonl", 0.5, 1), Share("b/y.jsonl", 0.5, 1)]) == ["x.jsonl", "y.jsonl"]
    assert names([Share("a/x.jsonl", 0.5, 1), Share("b/x.jsonl", 0.5, 1)]) == ["a/x.jsonl", "b/x.jsonl"]


def test_turns_are_fair_with_many_files_and_one_large_share() -> None:
    made = shares([90, *[1] * 10], [100] * 11)
    had = Counter[int]()
    for place, file in enumerate(turns(made, 1100), start=1):
        had[file] += 1
        assert all(abs(had[n] - share.share * place) < 1 for n, share in enumerate(made))


def test_a_plan_says_how_often_a_row_comes() -> None:
    assert lines(shares([0.75, 0.25], [10, 30])) == [
        ("shares", "0.75 of an epoch is 0.jsonl: each of its 10 rows 3 times"),
        ("", "0.25 of an epoch is 1.jsonl: each of its 30 rows 0.333 times"),
    ]


@pytest.mark.parametrize(
    ("weights", "rows", "said"),
    [
        ([1, 1], [3, 0], "1.jsonl has a weight and no row"),
        ([1, 999], [3, 3], "0.jsonl has 0.001 of an epoch"),
    ],
)
def test_a_share_of_nothing_is_refused(weights: list[float], rows: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        shares(weights, rows)
    assert KEY in str(error.value)


def texts(path: Path, name: str, number: int) -> str:
    rows = [json.dumps({"text": f"{name} {place}"}) for place in range(number)]
    (path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return str(path / f"{name}.jsonl")


def test_weights_stand_before_their_files(tmp_path: Path) -> None:
    a, b = texts(tmp_path, "a", 1), texts(tmp_path, "b", 1)
    prefix = DataPrefix.model_validate({"train": [0.3, a, 7, b]})
    assert (prefix.train_files, prefix.weights) == ((a, b), (0.3, 7.0))
    assert not list(prefix.problems("key"))
    plain = DataPrefix.model_validate({"train": [a, b]})
    assert (plain.train_files, plain.weights) == ((a, b), ())


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ([0.3, "A", "B"], r'key\.train is "0\.3": is a number; weights and files take turns'),
        (["A", 0.3, "B", 0.7], "take turns"),
        ([0, "A", 1, "B"], r"key\.train is 0\.0: a weight should be above 0; or drop it, and .*a\.jsonl"),
        ([-1, "A", 1, "B"], "a weight should be above 0"),
        ([0.5, "A", 0.5, "A"], "has several weights; name it once, with their sum"),
    ],
)
def test_weights_that_are_none_are_refused(train: list[Any], said: str, tmp_path: Path) -> None:
    files = {"A": texts(tmp_path, "a", 1), "B": texts(tmp_path, "b", 1)}
    prefix = DataPrefix.model_validate({"train": [files.get(one, one) for one in train]})
    with pytest.raises(AssertionError, match=said):
        raise AssertionError("\n".join(prefix.problems("key")))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("shares") / "policy")


def test_what_is_read_has_the_shares_of_what_is_left_and_a_fingerprint_of_its_own(
    policy: Path, tmp_path: Path
) -> None:
    a, b, held_out = texts(tmp_path, "a", 6), texts(tmp_path, "b", 4), texts(tmp_path, "c", 1)
    Path(held_out).write_text('{"text": "B 3"}\n')

    def read(*train: Any) -> Any:
        prefix = {"train": list(train), "validation": [held_out]}
        config: Any = TrainRSConfig.model_validate(
            {
                "exp_manager": {"explicit_log_dir": str(tmp_path / "run")},
                "pretrained_checkpoint": {"restore_from_path": str(policy)},
                "model": {
                    "data": {"data_prefix": prefix, "overlap": "drop"},
                    "rs": {"length_params": {"max_length": 8}},
                },
            }
        )
        data = read_rs_data(config, *read_tokenizer(config))
        return data, attempt.of_rs_data(config, data)[changes.TRAIN]

    (plain, of_plain), (even, of_even) = read(a, b), read(1, a, 1, b)
    assert [prompt.text for prompt in even.prompts] == [prompt.text for prompt in plain.prompts]
    assert [(share.share, share.rows) for share in even.shares] == [(0.5, 6), (0.5, 3)]
    assert list(plain.shares) == []
    assert of_plain == attempt.of_prompts(plain.prompts)
    assert read(0.5, a, 0.5, b)[1] == of_even
    assert len({of_plain, of_even, read(1, a, 2, b)[1]}) == 3
    Path(b).write_text('{"text": "b 3"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl has a weight and no row that can be used"):
        read(1, a, 1, b)
