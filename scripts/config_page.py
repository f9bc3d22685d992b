"""Writes docs/config.md from the docstrings of the config's fields: `python scripts/config_page.py`.

A row for each key of each command: what it is without being set, what it takes, what it means. Rows that
several commands share stand there once. Left out on purpose: advice, which is in the other pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rs_aligner.config import (
    GenerateConfig,
    ServeRewardConfig,
    ServeRolloutsConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
)
from rs_aligner.config.base import Section
from rs_aligner.config.keys import below_key, kinds, meaning
from rs_aligner.config.tree import read_tree

ROOT = Path(__file__).resolve().parents[1]
PAGE, CONF = ROOT / "docs" / "config.md", ROOT / "examples" / "conf"
COMMANDS: dict[str, type[Section]] = {
    "train_rs": TrainRSConfig,
    "train_sft": TrainSFTConfig,
    "train_reward_model": TrainRewardModelConfig,
    "generate": GenerateConfig,
    "serve_reward": ServeRewardConfig,
    "serve_rollouts": ServeRolloutsConfig,
}
HEAD = """# All keys

Every key of every command: its value where it is not set, the values it takes, what it means. Written by
`python scripts/config_page.py` from the docstrings in `rs_aligner/config/`, where they are to be changed.

A key is set on the command line (`python examples/train_rs.py model.seed=7`), in a YAML file like those in
`examples/conf/`, or from Python (`rs_aligner.train(config={"model.seed": 7}, ...)`). Why the defaults are as
they are: [docs/defaults.md](defaults.md). Where a command's own YAML file sets a key to another value, that
is told, too; a section that is null is not there unless one of its keys is set. Brackets stand for an element
of a list (`model.rs.selection[topk].k` is `k` of one with `name: topk`), a star for a name of one's own
(`judge.parts.*.weight`).
"""
TRAININGS = ["train_rs", "train_sft", "train_reward_model"]
MUST = "*must be set*"


class Row(NamedTuple):
    """A key of a table."""

    key: str
    default: str
    takes: str
    meaning: str


class Part(NamedTuple):
    """A section at its place in a command's config."""

    place: str
    about: str
    rows: list[Row]


def page() -> str:
    """The whole page."""
    places: dict[str, dict[str, Part]] = {}
    for command, schema in COMMANDS.items():
        in_file = dict(_flat(read_tree(CONF / command)))
        for part in parts(schema, made(schema)):
            rows = [_with_file(row, in_file) for row in part.rows]
            if rows:
                places.setdefault(part.place, {})[command] = part._replace(rows=rows)
    order = sorted(places, key=lambda place: [_rank(places, place, depth) for depth in range(_depth(place))])
    return "\n".join([HEAD, *(_section(place, places[place]) for place in order)])


def parts(schema: type[Section], default: Section | None, place: str = "", about: str = "") -> Iterator[Part]:
    """A section, then those below it, in the order of the fields."""
    prefix = f"{place}." if place else ""
    rows = []
    below: list[Part] = []
    for name, field in schema.model_fields.items():
        value = _default(field, default, name)
        sections = below_key(field)
        if not sections or kinds(field):
            told = meaning(schema, name) or _text(schema.__doc__)
            values = field.title or takes(field.annotation, field.metadata)
            rows.append(Row(prefix + name, _shown(value, field), values, told))
        for step, section in sections:
            at_once = value if isinstance(value, Section) else made(section)
            null = " Not set: `null`." if value is None else ""
            of_key = "" if step else _text(meaning(schema, name))
            said = " ".join(filter(None, (_text(section.__doc__), of_key))) + null
            below += parts(section, at_once, f"{prefix}{name}{step}", said)
    yield Part(place, about or _text(schema.__doc__), rows)
    yield from below


def made(section: type[Section]) -> Section | None:
    """The section with nothing set; None if something has to be."""
    try:
        return section()
    except ValidationError:
        return None


def takes(kind: Any, metadata: list[Any]) -> str:
    """In words, the values of a type with its bounds."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        known = [one for one in inside[1:] if isinstance(one, FieldInfo)]
        bounds = [bound for one in known for bound in one.metadata]
        title = next((one.title for one in known if one.title), None)
        return title or takes(inside[0], [*bounds, *metadata])
    if origin in (Union, UnionType):
        return " or ".join(takes(one, metadata) for one in sorted(inside, key=lambda one: one is NoneType))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inside)
    if origin is tuple:
        if len(inside) == 2 and inside[1] is not Ellipsis:
            return f"[{', '.join(takes(one, []) for one in inside)}]"
        return "list of sections"
    if origin is dict or kind is dict:
        return "keys and values"
    if kind is NoneType:
        return "null"
    word = {bool: "true, false", int: "whole number", float: "number", str: "text"}.get(kind, "")
    bounds = " and ".join(_bounds(metadata))
    return f"{word} {bounds}".strip() if word else str(kind)


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for one in metadata:
        for bound, word in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
            value = getattr(one, bound, None) if isinstance(one, annotated_types.BaseMetadata) else None
            if value is not None:
                yield f"{word} {value:g}"


def _flat(tree: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a YAML file by their keys, but for what has to be set and what refers to another key."""
    for name in tree:
        if OmegaConf.is_missing(tree, name) or OmegaConf.is_interpolation(tree, name):
            continue
        if OmegaConf.is_dict(tree[name]):
            yield from _flat(tree[name], f"{prefix}{name}.")
        yield (
            prefix + str(name),
            OmegaConf.to_container(tree[name]) if OmegaConf.is_config(tree[name]) else tree[name],
        )


def _with_file(row: Row, in_file: dict[str, Any]) -> Row:
    value = in_file.get(row.key)
    if row.key not in in_file or row.default in (MUST, _as_code(value)) or _same(row.default, value):
        return row
    return row._replace(default=f"{row.default}; in the YAML file {_as_code(value)}")


def _same(default: str, value: Any) -> bool:
    """Whether a number is written in another way only."""
    try:
        return float(default.strip("`")) == float(value)
    except (TypeError, ValueError):
        return False


def _default(field: FieldInfo, default: Section | None, name: str) -> Any:
    """The key's value where it is not set; Ellipsis where it has to be."""
    if default is not None:
        return getattr(default, name)
    return ... if field.is_required() else field.get_default(call_default_factory=True)


def _shown(value: Any, field: FieldInfo) -> str:
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if value is ...:
        return f"`{names[0]}`" if len(names) == 1 else MUST
    return _as_code(list(value) if isinstance(value, tuple) else value)


def _as_code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _text(docstring: str | None) -> str:
    """On one line, with links to other pages."""
    return re.sub(r"docs/(\w+\.md)", r"[docs/\1](\1)", " ".join((docstring or "").split()))


def _depth(place: str) -> int:
    return place.count(".") + 1 if place else 0


def _rank(places: dict[str, dict[str, Part]], place: str, depth: int) -> int:
    """Where the first names of a place come, by the order in which the commands have them."""
    start = ".".join(place.split(".")[: depth + 1])
    return next(rank for rank, other in enumerate(places) if f"{other}.".startswith(f"{start}."))


def _section(place: str, by_command: dict[str, Part]) -> str:
    """The section of the page: what it is about, and its table."""
    lines = [f"## `{place}`" if place else "## At the root", "", f"Of {_names(list(by_command))}.", ""]
    for about, commands in _grouped({command: part.about for command, part in by_command.items()}).items():
        alone = f"{_names(commands)}: " if len(commands) < len(by_command) else ""
        lines += [f"{alone}{about}", ""] if place else []
    rows = {row: [] for part in by_command.values() for row in part.rows}
    for command, part in by_command.items():
        for row in part.rows:
            rows[row].append(command)
    if rows:
        lines += ["| key | not set | takes | meaning |", "|---|---|---|---|"]
    for row, commands in rows.items():
        only = f"({_names(commands)}) " if len(commands) < len(by_command) else ""
        cells = (f"`{row.key}`", row.default, row.takes, only + _text(row.meaning))
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join([*lines, ""])


def _grouped(texts: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for command, text in texts.items():
        groups.setdefault(text, []).append(command)
    return groups


def _names(commands: list[str]) -> str:
    if commands == TRAININGS:
        return "all trainings"
    return ", ".join(f"`{command}`" for command in commands)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
