"""All keys that a config can have: for errors about keys, for the page of them, and for tests.

Left out on purpose: values, and keys from elsewhere (`upstream.py`, `aliases.py`).
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeGuard, get_args, get_origin

from pydantic.fields import FieldInfo

from rs_aligner.config.base import Section


@dataclass(frozen=True)
class Leaf:
    """A key that has a value and no keys of its own.

    Attributes:
        key: dotted. In an element of a list there are brackets with its kind, in a value of a dict a star:
            `model.rs.selection[topk].k`, `judge.parts.*.weight`.
        section: the section that has it.
        name: its last name.
    """

    key: str
    section: type[Section]
    name: str

    @property
    def field(self) -> FieldInfo:
        """What is known of it."""
        return self.section.model_fields[self.name]

    @property
    def meaning(self) -> str:
        """The docstring under it; empty if it has none."""
        return meaning(self.section, self.name)


def meaning(section: type[Section], key: str) -> str:
    """The docstring under a key of a section or, with a dotted key, of one below it; empty if it has none.

    Sources are read for it, which pydantic would do for every section at its definition.
    """
    name, _, rest = key.partition(".")
    if rest:
        below = sections(section.model_fields[name])
        return next((meaning(one, rest) for one in below if rest.partition(".")[0] in one.model_fields), "")
    owner = next((one for one in section.__mro__ if name in inspect.get_annotations(one)), section)
    return _docstrings(owner.__module__).get((owner.__name__, name), "")


@functools.cache
def _docstrings(module: str) -> Mapping[tuple[str, str], str]:
    """What is written under the fields of a module's classes, by class and field."""
    found = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        for field, below in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    assert isinstance(node, ast.ClassDef)
                    found[node.name, name] = inspect.cleandoc(text)
    return found


def leaves(schema: type[Section], prefix: str = "") -> Iterator[Leaf]:
    """All leaves below a section, those in elements of lists and dicts included; a list is one, too."""
    for name, field in schema.model_fields.items():
        below = below_key(field)
        if not below or kinds(field):
            yield Leaf(prefix + name, schema, name)
        for step, section in below:
            yield from leaves(section, f"{prefix}{name}{step}.")


def walk(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys below a section, dotted, the sections themselves included; elements of a list have none."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        for section in sections(field):
            yield from walk(section, f"{prefix}{name}.")


def below_key(field: FieldInfo) -> list[tuple[str, type[Section]]]:
    """The sections that a key may hold, each with what comes behind the key on the way to it."""
    if kinds(field):
        return [(f"[{kind or ''}]", section) for kind, section in kinds(field).items()]
    step = ".*" if get_origin(field.annotation) is dict else ""
    return [(step, section) for section in sections(field)]


def sections(field: FieldInfo) -> list[type[Section]]:
    """The sections that a key holds itself; none where it is a list, whose elements have no names."""
    if get_origin(field.annotation) is tuple:
        return []
    return [part for part in (field.annotation, *get_args(field.annotation)) if _is_section(part)]


def kinds(field: FieldInfo) -> dict[str | None, type[Section]]:
    """The sections that a list may hold, by their `name`; under None where it holds only one kind."""
    if get_origin(field.annotation) is not tuple:
        return {}
    element = get_args(field.annotation)[0]
    if _is_section(element):
        return {None: element}
    union = get_args(element)[0] if get_origin(element) is Annotated else element
    found = [part for part in get_args(union) if _is_section(part)]
    return {get_args(section.model_fields["name"].annotation)[0]: section for section in found}


def _is_section(part: Any) -> TypeGuard[type[Section]]:
    return isinstance(part, type) and issubclass(part, Section)
