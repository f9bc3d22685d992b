"""Values that travel between a program and its tests: what arrives is what left, and nothing that acts."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.sandbox.plain import NotPlain, decode, encode

pytestmark = pytest.mark.timeout(60)

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    hashable | st.binary().map(bytearray) | st.sets(hashable, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(hashable, inner, max_size=3),
    max_leaves=8,
)


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


def kinds(value: Any) -> Any:
    """The types within a value, where order is certain."""
    if isinstance(value, (list, tuple)):
        return [type(value), *map(kinds, value)]
    return type(value)


@given(values)
def test_what_arrives_is_equal_and_of_the_same_kind(value: Any) -> None:
    found = there_and_back(value)
    assert found == value
    assert kinds(found) == kinds(value)


def test_numbers_that_are_none_and_texts_that_are_no_unicode_arrive() -> None:
    assert math.isnan(there_and_back(math.nan))
    assert there_and_back([math.inf, -math.inf]) == [math.inf, -math.inf]
    assert there_and_back("\ud800\x00") == "\ud800\x00"
    assert there_and_back(10**10000) == 10**10000
    assert there_and_back(range(1, 9, 2)) == range(1, 9, 2)
    assert str(there_and_back(-0.0)) == "-0.0"


def test_subclasses_arrive_as_the_plain_kind() -> None:
    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        def __int__(self) -> int:
            return 6

        __hash__ = int.__hash__

    class Text(str):
        def __str__(self) -> str:
            return "six"

    Pair = namedtuple("Pair", "a b")  # what programs return
    assert type(there_and_back(Number(5))) is int
    assert there_and_back(Number(5)) == 5
    assert there_and_back(Text("five")) == "five"
    assert there_and_back(Pair(1, 2)) == (1, 2)
    assert there_and_back(Counter("aab")) == {"a": 2, "b": 1}
    assert type(there_and_back(OrderedDict(a=1))) is dict
    assert there_and_back([Decimal("1.10"), Fraction(1, 3)]) == [Decimal("1.10"), Fraction(1, 3)]


def test_an_object_travels_as_a_reference_or_not_at_all() -> None:
    thing = object()
    assert encode([thing], lambda value: 7) == [{"r": 7}]
    assert decode([{"r": 7}], lambda reference: reference + 1) == [8]
    with pytest.raises(NotPlain, match="a object is no plain data"):
        encode(thing)
    with pytest.raises(ValueError, match="no value of the kind 'r'"):
        decode({"r": 7})


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"a": 1, "b": 2},
        {"x": 1},
        {"t": 5},
        {"s": [[1]]},
        {"d": [[[1], 2]]},
        {"d": [1]},
        {"i": "zz"},
        {"i": []},
        {"f": "x"},
        {"c": [1]},
        {"g": [1, 2, 0]},
        {"g": "ab"},
        {"b": "0"},
        {"b": 3},
        {"F": "1/0"},
        {"D": "x"},
    ],
)
def test_what_is_no_value_is_an_error_of_one_kind(said: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # one of several texts, all for nobody to read
        decode(said)
