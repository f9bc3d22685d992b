"""What a judge is asked, and that nothing but a finite number of its own becomes a score."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rs_aligner.remote.errors import BadAnswer
from rs_aligner.reward.protocol import (
    bytes_column,
    parse_answer,
    text_request,
    text_row,
    token_request,
    token_row,
)
from rs_aligner.rollout import Score, ScoreFailure
from tests.reward.rows import row


def test_a_text_request_carries_the_texts_and_the_whole_row() -> None:
    rows = [row("4", answer=4, source="ü"), row("", prompt="a\0")]
    request = text_request([text_row(*one) for one in rows], [b"1", b"2"])
    assert request["prompts"].tolist() == [[b"2 + 2 ="], [b"a\0"]]
    assert request["responses"].tolist() == [[b"4"], [b""]]
    assert json.loads(request["metadata"][0, 0]) == {"answer": 4, "source": "ü"}
    assert request["row_ids"].tolist() == [[b"1"], [b"2"]]
    assert all(array.shape == (2, 1) and array.dtype == object for array in request.values())


def test_a_token_request_follows_the_wire_contract() -> None:
    rows = [token_row(*row(tokens=2)), token_row(*row(tokens=4))]
    request = token_request(rows, pad_to_length=8)
    assert request["tokens"].tolist() == [[1, 2, 3, 4, 5, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 0]]
    assert request["sequence_lengths"].tolist() == [[5], [7]]
    assert request["tokens"].dtype == request["sequence_lengths"].dtype == np.int64
    assert set(request) == {"tokens", "sequence_lengths"}


@pytest.mark.parametrize(("tokens", "width"), [(2, 64), (61, 64), (62, 128)])
def test_token_rows_are_padded_to_a_bucket_so_that_requests_can_be_merged(tokens: int, width: int) -> None:
    assert token_request([token_row(*row(tokens=tokens))])["tokens"].shape == (1, width)


def test_a_row_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"remote_rm\.pad_to_length=7"):
        token_row(*row(tokens=5), pad_to_length=7)
    with pytest.raises(ValueError, match="surrogates"):
        text_row(*row("\ud800"))
    with pytest.raises(TypeError, match="JSON"):
        text_row(*row(answer={1, 2}))


def column(*items: bytes) -> np.ndarray:
    return bytes_column(items)


TWO = {
    "rewards": np.array([[1.5], [-2.0]], dtype=np.float32),
    "errors": column(b"", b""),
    "row_ids": column(b"a", b"b"),
    "fingerprint": column(b"f00d", b"f00d"),
    "components": column(b'{"format": 1, "answer": 0.5}', b""),
}


def test_rewards_come_back_in_the_order_of_the_rows_with_components_and_fingerprint() -> None:
    first, second = parse_answer(TWO, 2, [b"a", b"b"], "f00d")
    assert (first, second) == (Score(1.5, {"format": 1.0, "answer": 0.5}), Score(-2.0))
    assert isinstance(first, Score)
    assert first.judge == "f00d"


def test_a_server_that_answers_rewards_only_is_as_good() -> None:
    assert parse_answer({"rewards": TWO["rewards"]}, 2) == [Score(1.5), Score(-2.0)]
    assert parse_answer({"rewards": np.array([0.25], dtype=np.float32)}, 1) == [Score(0.25)]


def test_a_reward_that_is_no_number_fails_its_row_alone_with_the_judges_reason() -> None:
    rewards = np.array([[math.nan], [1.0], [math.inf], [3.0]], dtype=np.float32)
    errors = column(b"no key", b"", b"", b"do not trust this")
    assert parse_answer({"rewards": rewards, "errors": errors}, 4) == [
        ScoreFailure("no key"),
        Score(1.0),
        ScoreFailure("the judge's reward is inf"),
        ScoreFailure("do not trust this"),
    ]


@pytest.mark.parametrize(
    "components", [b"{", b"[]", b'{"a": "1"}', b'{"a": NaN}', b'{"a": true}', b'{"a": null}', b"\xff", b"1"]
)
def test_components_that_are_no_numbers_fail_their_row_alone(components: bytes) -> None:
    first, second = parse_answer({**TWO, "components": column(components, b"")}, 2)
    assert isinstance(first, ScoreFailure)
    assert "components" in first.reason or "finite" in first.reason
    assert second == Score(-2.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rewards": None}, "no `rewards`"),
        ({"rewards": np.zeros((1, 1), dtype=np.float32)}, r"shape \[1, 1\] for 2 rows"),
        ({"rewards": np.zeros((3, 1), dtype=np.float32)}, r"shape \[3, 1\] for 2 rows"),
        ({"rewards": np.zeros((1, 2), dtype=np.float32)}, r"shape \[1, 2\] for 2 rows"),
        ({"rewards": np.zeros((2, 1), dtype=np.int64)}, "int64, not floating point"),
        ({"rewards": [[1.0], [2.0]]}, "list, not floating point"),
        ({"errors": column(b"")}, r"errors of shape \[1, 1\]"),
        ({"row_ids": column(b"b", b"a")}, "row_ids are those of other rows"),
        ({"row_ids": column(b"a", b"b", b"c")}, "row_ids of shape"),
        ({"row_ids": None}, "row_ids are absent"),
        ({"row_ids": np.zeros((2, 1), dtype=np.float32)}, "row_ids` are not bytes"),
        ({"fingerprint": column(b"f00d", b"beef")}, "2 fingerprints"),
        ({"fingerprint": column(b"", b"")}, "an empty one"),
        ({"fingerprint": column(b"beef", b"beef")}, "beef, not f00d: it was replaced in mid-run"),
        ({"fingerprint": None}, "absent, not f00d"),
        ({"components": column(b"")}, r"components of shape \[1, 1\]"),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_refused_as_a_whole(
    changes: dict[str, object], reason: str
) -> None:
    answer = {name: value for name, value in {**TWO, **changes}.items() if value is not None}
    with pytest.raises(BadAnswer, match=reason):
        parse_answer(answer, 2, [b"a", b"b"], "f00d")


ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["f2", "f4", "f8", "i8", "b1", "c8", "S3"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
VALUES = ARRAYS | st.none() | st.binary(max_size=4) | st.lists(st.floats(), max_size=4)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    answer=st.dictionaries(st.sampled_from(["rewards", "errors", "components", "scores"]), VALUES),
    num_rows=st.integers(1, 4),
)
def test_whatever_is_answered_each_row_gets_its_own_finite_number_or_a_reason(
    answer: dict[str, object], num_rows: int
) -> None:
    try:
        results = parse_answer(answer, num_rows)
    except BadAnswer:
        return
    assert len(results) == num_rows
    for index, result in enumerate(results):
        if isinstance(result, Score):
            assert math.isfinite(result.reward)
            assert result.reward == np.asarray(answer["rewards"]).reshape(num_rows)[index]
        else:
            assert result.reason


def test_the_protocol_needs_neither_torch_nor_the_server_stack() -> None:
    heavy = ["torch", "pytriton", "tritonclient", "gevent", "megatron", "nemo", "transformers"]
    code = f"import sys, rs_aligner.reward.protocol; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).strip() == "[]"
