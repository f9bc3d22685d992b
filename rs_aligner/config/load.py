"""From a composed config to a typed one, or to one error that tells all that is wrong.

Order matters: values that must be set, interpolations, old keys that nothing reads, the schema's
types and names, and last what relates several keys. Nothing here loads a model or a framework.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rs_aligner.config.aliases import meant
from rs_aligner.config.base import ConfigError, Section, check, problem
from rs_aligner.config.keys import kinds, meaning, sections, walk
from rs_aligner.config.serve_reward import ServeRewardConfig
from rs_aligner.config.train_rs import TrainRSConfig
from rs_aligner.config.upstream import SERVE_REWARD, TRAIN_RS, Upstream

Config = TypeVar("Config", bound=Section)

_UPSTREAM: dict[type[Section], Upstream] = {TrainRSConfig: TRAIN_RS, ServeRewardConfig: SERVE_REWARD}
_PLAIN_OVERRIDE = re.compile(r"^(?!hydra\.)\+?[A-Za-z_][\w.]*=")


def load_config(config: DictConfig | dict[str, Any], schema: type[Config]) -> Config:
    """Reads and checks a whole config.

    Args:
        config: the tree as Hydra composed it, or a plain dict; interpolations are resolved here.
        schema: the root that it must fit.

    Returns:
        The typed config, frozen.

    Raises:
        ConfigError: with one line for each problem: the full dotted key, its value, what would work.
    """
    register_resolvers()
    node = config if isinstance(config, DictConfig) else OmegaConf.create(config)
    known = _Known(schema, "", dict(walk(schema)))
    problems: list[str] = []
    try:
        unset = sorted(OmegaConf.missing_keys(node))
        problems += [line for key in unset for line in _must_be_set(key, known)]
        tree: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        # What refers to an unset key says nothing that the line of that key does not.
        reason = str(error.msg or error).splitlines()[0]
        raise ConfigError(problems or [f"{error.full_key} cannot be resolved: {reason}"]) from None
    if schema in _UPSTREAM:
        problems += _UPSTREAM[schema].take_out(tree)
    for key in unset:
        _drop(tree, key.split("."))
    try:
        typed = schema.model_validate(tree)
    except ValidationError as error:
        lines = [line for item in error.errors() for line in _explain(item, known)]
        raise ConfigError(list(dict.fromkeys(problems + lines))) from None
    problems += check(typed)
    if problems:
        raise ConfigError(problems)
    return typed


def register_resolvers() -> None:
    """Makes `multiply` and `int_div` known to OmegaConf, as in `${int_div:64,2}`. Idempotent."""
    OmegaConf.register_new_resolver("multiply", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("int_div", lambda a, b: a // b, replace=True)


def open_overrides(arguments: Sequence[str]) -> list[str]:
    """Command line overrides that leave the judgement of keys to `load_config`.

    Hydra itself refuses a key that the YAML file does not hold: it would reject old keys that are
    accepted here, and cannot name the key that was meant. So `key=value` becomes `++key=value`.
    Options, `hydra.` keys and other kinds of overrides stay as they are.
    """
    return [
        "++" + argument.lstrip("+") if _PLAIN_OVERRIDE.match(argument) else argument for argument in arguments
    ]


class _Known(NamedTuple):
    """The keys that there could be below a section, each with the prefix, and their meanings."""

    schema: type[Section]
    prefix: str
    fields: dict[str, FieldInfo]

    def meaning(self, key: str) -> str:
        return meaning(self.schema, key.removeprefix(self.prefix))


def _must_be_set(key: str, known: _Known) -> list[str]:
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


def _drop(tree: Any, path: list[str]) -> None:
    for name in path[:-1]:
        tree = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree.pop(path[-1], None)


def _explain(item: Any, known: _Known) -> list[str]:
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
            return _must_be_set(key, known)
        case "extra_forbidden":
            return [_unknown_key(key, item["input"], known.fields)]
        case "model_type" | "model_attributes_type" | "dict_type":
            return [problem(key, item["input"], "this is a section, it holds keys of its own")]
    what = re.sub(r"^(Value error, |Input )", "", item["msg"])
    return [problem(key, item["input"], what)]


def _place(loc: tuple[Any, ...], known: _Known) -> tuple[str, _Known]:
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
        return key, _Known(kind, f"{element}.", dict(walk(kind, f"{element}.")))
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
