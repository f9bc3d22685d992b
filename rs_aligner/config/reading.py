"""From plain values to a checked section, or to one error: a line each with key, value and what would work.

What pydantic says of a value is put into the words of the config, and a key that does not exist is told with
the one that was meant. Left out on purpose: how a whole tree is composed and cleaned first (`load`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rs_aligner.config.aliases import meant
from rs_aligner.config.base import ConfigError, Section, check, problem
from rs_aligner.config.keys import kinds, meaning, sections, walk

Read = TypeVar("Read", bound=Section)


def read_section(schema: type[Read], values: Mapping[str, Any], key: str = "") -> Read:
    """A section with these values, its own problems looked for.

    Args:
        schema: which section.
        values: of its keys, plain.
        key: where it stands, dotted; empty for a whole config.

    Raises:
        ConfigError: with one line for each problem.
    """
    known, place = Known.of(schema, key), tuple(key.split(".")) if key else ()
    try:
        typed = schema.model_validate(values)
    except ValidationError as error:
        items = ({**item, "loc": (*place, *item["loc"])} for item in error.errors())
        lines = [line for item in items for line in _explain(item, known)]
        raise ConfigError(list(dict.fromkeys(lines))) from None
    if problems := list(check(typed, key)):
        raise ConfigError(problems)
    return typed


class Known(NamedTuple):
    """The keys that there could be below a section, each with the prefix, and their meanings."""

    schema: type[Section]
    prefix: str
    fields: dict[str, FieldInfo]

    @classmethod
    def of(cls, schema: type[Section], key: str = "") -> Self:
        """Those below a section that stands at `key`."""
        prefix = f"{key}." if key else ""
        return cls(schema, prefix, dict(walk(schema, prefix)))

    def meaning(self, key: str) -> str:
        """What is written under a key."""
        return meaning(self.schema, key.removeprefix(self.prefix))


def must_be_set(key: str, known: Known) -> list[str]:
    """A line for the key, or for each key below it that has no default."""
    fields = known.fields
    below = [name for name in fields if name.startswith(f"{key}.") and _is_needed(name, key, fields)]
    leaves = [name for name in below if not sections(fields[name])]
    return [f"{name} must be set: {known.meaning(name)}" for name in leaves or [key] if name in fields] or [
        f"{key} must be set, or left out"
    ]


def _is_needed(name: str, above: str, fields: dict[str, FieldInfo]) -> bool:
    """Whether a key has no default, nor any section between it and the one above."""
    while name != above:
        if not fields[name].is_required():
            return False
        name = name.rpartition(".")[0]
    return True


def _explain(item: Any, known: Known) -> list[str]:
    """A pydantic error in the words of the config."""
    key, known = _place(item["loc"], known)
    match item["type"]:
        case "union_tag_invalid":
            return [_unknown_name(f"{key}.name", item)]
        case "tuple_type":
            return [problem(key, item["input"], "should be a list")]
        case "union_tag_not_found":
            if not isinstance(item["input"], dict):
                return [problem(key, item["input"], "should be a section, such as {name: ..., ...}")]
            return [f"{key}.name must be set: {', '.join(map(str, kinds(known.fields[key])))}"]
        case "missing":
            return must_be_set(key, known)
        case "extra_forbidden":
            return [_unknown_key(key, item["input"], known.fields)]
        case "model_type" | "model_attributes_type" | "dict_type":
            return [problem(key, item["input"], "this is a section, it holds keys of its own")]
    what = re.sub(r"^(Value error, |Input )", "", item["msg"])
    return [problem(key, item["input"], what)]


def _place(loc: tuple[Any, ...], known: Known) -> tuple[str, Known]:
    """The dotted key of an error, and the keys that there could be in its place.

    Those of an element of a list are its own kind's only. Where the elements are of several kinds, pydantic
    puts the kind behind the element's number.
    """
    for end, part in enumerate(loc):
        listed = ".".join(str(part) for part in loc[:end])
        if not isinstance(part, int) or listed not in known.fields:
            continue
        of_list = kinds(known.fields[listed])
        element, below = f"{listed}.{part}", loc[end + 1 :]
        if not of_list:
            break
        if not below or (None not in of_list and below[0] not in of_list):
            return element, known._replace(fields={element: known.fields[listed]})
        kind = of_list[None] if None in of_list else of_list[below[0]]
        key = ".".join(map(str, (element, *(below if None in of_list else below[1:]))))
        return key, Known(kind, f"{element}.", dict(walk(kind, f"{element}.")))
    return ".".join(str(part) for part in loc), known


def _unknown_name(key: str, item: Any) -> str:
    names = re.findall(r"'(\w+)'", item["ctx"]["expected_tags"])
    nearest = _nearest(str(item["ctx"]["tag"]), names)
    return problem(key, item["ctx"]["tag"], f"should be one of {', '.join(names)}; the nearest is {nearest}")


def _unknown_key(key: str, value: Any, fields: dict[str, FieldInfo]) -> str:
    """An unknown key, with the one that was meant: by what it is called elsewhere, or by its letters."""
    found = meant(_leaf(key), fields)
    if found is not None:
        name, note = found
        return f"{key} is not a key; the nearest one is {name}" + (f" ({note})" if note else "")
    section = isinstance(value, dict)
    candidates = [name for name, field in fields.items() if bool(sections(field)) == section] or list(fields)
    # A key of that very name, under another section, is what is meant, however unlike the whole.
    same = [name for name in candidates if _leaf(name) == _leaf(key)]
    words = set(_leaf(key).split("_"))  # `num_rollouts` is short for `num_rollouts_per_prompt`
    longer = [name for name in candidates if len(words) > 1 and words < set(_leaf(name).split("_"))]
    nearest = _nearest(key, same or longer or candidates)
    lines = [f"{key} is not a key; the nearest one is {nearest}"]
    for name in _leaves(value) if section else ():
        there = meant(_leaf(name), fields)
        if there is not None and f"{nearest}.{name}" not in fields:
            lines.append(f"{key}.{name} is {there[0]} here")
    return "; ".join(lines)


def _leaves(value: dict[Any, Any]) -> Iterator[str]:
    """The dotted names of what is in a section, as deep as it goes."""
    for name, below in value.items():
        if isinstance(below, dict):
            yield from (f"{name}.{leaf}" for leaf in _leaves(below))
        else:
            yield str(name)


def _nearest(key: str, candidates: Sequence[str]) -> str:
    """The key most like the unknown one; its last name counts as much as the whole."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        return whole + difflib.SequenceMatcher(None, _leaf(key), _leaf(candidate)).ratio()

    return max(candidates, key=likeness)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
