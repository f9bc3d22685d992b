"""At least 10,000 malformed answers, as bytes and as arrays: none becomes a score.

Each starts as a right answer to the request and is then spoilt in a way that makes all, or named, rows of it
untrue. What the checking code makes of it is an error for the whole answer, or a failure for those rows.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rs_aligner.remote.errors import BadAnswer
from rs_aligner.remote.kserve import Arrays, pack_tensors, unpack_answer
from rs_aligner.reward.protocol import bytes_column, parse_answer
from rs_aligner.rollout import Score

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

MODEL, REQUEST_ID, FINGERPRINT = "reward_model", "request-7", "f00d"
EXAMPLES = 5_000  # as bytes, and as many as arrays
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


def right_answer(rewards: list[float]) -> Arrays:
    """What a good server says of these rows."""
    count = len(rewards)
    return {
        "rewards": np.array(rewards, dtype=np.float32)[:, None],
        "errors": bytes_column([b""] * count),
        "row_ids": bytes_column(row_ids(count)),
        "fingerprint": bytes_column([FINGERPRINT.encode()] * count),
        "components": bytes_column([b'{"format": 1.0}'] * count),
    }


def row_ids(count: int) -> list[bytes]:
    return [b"row-%d" % number for number in range(count)]


def packed(arrays: Arrays, **header: Any) -> tuple[bytes, int]:
    tensors, data = pack_tensors(arrays)
    whole = {"model_name": MODEL, "model_version": "1", "id": REQUEST_ID, "outputs": tensors, **header}
    text = json.dumps(whole).encode()
    return text + data, len(text)


def scored_rows(body: bytes, json_length: int | None, count: int, *, plain: bool) -> set[int]:
    """The rows that the checking code takes for scored, as the client uses it.

    `plain`: from a server that offers neither row ids nor a fingerprint, so that nothing hides behind them.
    """
    try:
        answer = unpack_answer(body, json_length, MODEL, REQUEST_ID)
    except Exception:  # the transport makes an error of whatever the parser raises
        return set()
    return scored_of(answer, count, plain=plain)


def scored_of(answer: Any, count: int, *, plain: bool = False) -> set[int]:
    offered: Any = () if plain else (row_ids(count), FINGERPRINT)
    try:
        results = parse_answer(answer, count, *offered)
    except BadAnswer:
        return set()
    assert len(results) == count
    return {place for place, result in enumerate(results) if isinstance(result, Score)}


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.lists(finite, min_size=1, max_size=6)
not_json = st.binary(max_size=60).filter(lambda body: not body.lstrip().startswith(b"{"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def malformed_bytes(draw: st.DrawFn) -> tuple[bytes, int | None, int, set[int]]:
    """A body, its JSON length, how many rows were asked for, and the rows that are spoilt."""
    rewards = draw(rows)
    count = len(rewards)
    body, length = packed(right_answer(rewards))
    everything = set(range(count))
    spoil: Callable[[], tuple[bytes, int | None]] = draw(
        st.sampled_from(
            [
                lambda: (draw(not_json), draw(st.none() | st.integers(-5, 100))),
                lambda: (draw(st.binary(min_size=1, max_size=40)) + body, length),
                lambda: (body + draw(st.binary(min_size=1, max_size=40)), length),
                lambda: (body[: draw(st.integers(0, len(body) - 1))], length),
                lambda: (body, draw(st.integers(-len(body), len(body) * 2).filter(lambda n: n != length))),
                lambda: (json.dumps(draw(json_values)).encode(), None),
                lambda: packed(right_answer(rewards), id=draw(json_values.filter(lambda v: v != REQUEST_ID))),
                lambda: packed(
                    right_answer(rewards), model_name=draw(json_values.filter(lambda v: v != MODEL))
                ),
                lambda: packed(right_answer(rewards), outputs=draw(json_values)),
                lambda: twisted_header(draw, body, length),
                lambda: json_data(draw, count),
                lambda: broken_items(draw, rewards),
            ]
        )
    )
    return (*spoil(), count, everything)


def twisted_header(draw: st.DrawFn, body: bytes, length: int) -> tuple[bytes, int]:
    """One field of the rewards' description is something else."""
    header = json.loads(body[:length])
    rewards = header["outputs"][0]
    field = draw(st.sampled_from(["name", "datatype", "shape", "size", "twice", "gone"]))
    if field == "name":
        rewards["name"] = draw(json_values.filter(lambda value: value != "rewards"))
    elif field == "datatype":
        rewards["datatype"] = draw(st.sampled_from(["FP16", "FP64", "INT32", "BYTES", "BOOL", 7, None]))
    elif field == "shape":
        shape = rewards["shape"]
        rewards["shape"] = draw(json_values.filter(lambda value: value not in (shape, shape[:1])))
    elif field == "size":
        size = rewards["parameters"]["binary_data_size"]
        rewards["parameters"]["binary_data_size"] = draw(
            json_values.filter(lambda v: v != size and v is not None)
        )
    elif field == "twice":
        header["outputs"].append(rewards)
    else:
        header["outputs"].remove(rewards)
    text = json.dumps(header).encode()
    return text + body[length:], len(text)


def json_data(draw: st.DrawFn, count: int) -> tuple[bytes, None]:
    """Rewards as JSON that are no list of as many finite numbers."""
    no_number = (
        st.none() | st.booleans() | st.text(max_size=4) | st.just("1.0") | st.lists(finite, max_size=2)
    )
    wrong = st.one_of(
        json_values.filter(lambda value: not isinstance(value, list)),
        st.lists(no_number, min_size=count, max_size=count),
        st.lists(finite, max_size=count * 2).filter(lambda values: len(values) != count),
        st.lists(st.sampled_from([math.nan, math.inf, -math.inf, 1e300]), min_size=count, max_size=count),
    )
    tensor = {"name": "rewards", "datatype": "FP32", "shape": [count, 1], "data": draw(wrong)}
    return json.dumps({"outputs": [tensor]}).encode(), None


def broken_items(draw: st.DrawFn, rewards: list[float]) -> tuple[bytes, int]:
    """The row ids' bytes have a length that is not theirs."""
    body, length = packed(right_answer(rewards))
    at = body.rindex(b"row-%d" % (len(rewards) - 1)) - 4
    size = struct.unpack_from("<I", body, at)[0]
    wrong = draw(st.integers(0, 2**32 - 1).filter(lambda value: value != size))
    return body[:at] + struct.pack("<I", wrong) + body[at + 4 :], length


@many
@given(malformed_bytes())
def test_no_malformed_bytes_become_a_score(case: tuple[bytes, int | None, int, set[int]]) -> None:
    body, json_length, count, spoilt = case
    for plain in (False, True):
        assert scored_rows(body, json_length, count, plain=plain) & spoilt == set()


@st.composite
def malformed_arrays(draw: st.DrawFn) -> tuple[Any, int, set[int]]:
    """Outputs, how many rows were asked for, and the rows that are spoilt."""
    rewards = draw(rows)
    count = len(rewards)
    answer: dict[str, Any] = dict(right_answer(rewards))
    everything = set(range(count))
    kind = draw(st.integers(0, 9))
    if kind == 0:  # rows of no number
        places = draw(st.sets(st.integers(0, count - 1), min_size=1))
        answer["rewards"] = answer["rewards"].copy()
        for place in places:
            answer["rewards"][place] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
        return answer, count, places
    if kind == 1:  # rows with a reason to have none
        places = draw(st.sets(st.integers(0, count - 1), min_size=1))
        for place in places:
            answer["errors"][place, 0] = draw(st.binary(min_size=1, max_size=8))
        return answer, count, places
    if kind == 2:  # rows with components that are none
        places = draw(st.sets(st.integers(0, count - 1), min_size=1))
        for place in places:
            wrong = draw(
                st.sampled_from([b"{", b"[]", b'{"a": NaN}', b'{"a": "1"}', b'{"a": true}', b"\xff", b"0"])
            )
            answer["components"][place, 0] = wrong
        return answer, count, places
    if kind == 3:  # too few or too many rows, everywhere or in one output
        names = draw(st.sampled_from([list(answer), ["rewards"], ["row_ids"], ["errors"], ["fingerprint"]]))
        wanted = draw(st.integers(0, count * 2 + 1).filter(lambda number: number != count))
        for name in names:
            answer[name] = np.resize(answer[name], (wanted, 1))
    elif kind == 4:  # another shape
        shape = draw(st.sampled_from([(1, count + 1), (count, 2), (count, 1, 1), (), (count + 1,)]))
        answer["rewards"] = np.resize(answer["rewards"], shape)
    elif kind == 5:  # another type
        dtype = draw(st.sampled_from(["i8", "i4", "u1", "b1", "c8", "S3", "O", "U3"]))
        answer["rewards"] = np.clip(answer["rewards"], 0, 100).astype(dtype)
    elif kind == 6:  # other rows
        others = draw(st.lists(st.binary(max_size=8), min_size=count, max_size=count))
        answer["row_ids"] = bytes_column([b"x" + other for other in others])
    elif kind == 7:  # the rows in another order, of at least two
        count = max(count, 2)
        answer = dict(right_answer((rewards * 2)[:count]))
        answer["row_ids"] = np.roll(answer["row_ids"], draw(st.integers(1, count - 1)), axis=0)
        everything = set(range(count))
    elif kind == 8:  # another judge
        prints = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        answer["fingerprint"] = bytes_column([b"x" + one for one in prints])
    else:  # an output that is missing, or no array
        name = draw(st.sampled_from(["rewards", "row_ids", "fingerprint"]))
        answer[name] = draw(st.none() | st.binary(max_size=4) | st.lists(finite, max_size=6) | finite)
    return answer, count, everything


@many
@given(malformed_arrays())
def test_no_malformed_arrays_become_a_score(case: tuple[Any, int, set[int]]) -> None:
    answer, count, spoilt = case
    assert scored_of(answer, count) & spoilt == set()


def test_the_right_answer_that_all_of_them_start_from_is_scored() -> None:
    for plain in (False, True):
        assert scored_rows(*packed(right_answer([1.0, 2.0])), 2, plain=plain) == {0, 1}
    data = {"name": "rewards", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 2.0]}
    assert scored_rows(json.dumps({"outputs": [data]}).encode(), None, 2, plain=True) == {0, 1}
