"""From a composed config to a typed one, or to one error that tells all that is wrong.

Order matters: values that must be set, interpolations, old keys that nothing reads, the schema's
types and names, and last what relates several keys. Nothing here loads a model or a framework.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rs_aligner.config.base import ConfigError, Section
from rs_aligner.config.reading import Known, must_be_set, read_section
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
    known = Known.of(schema)
    problems: list[str] = []
    try:
        unset = sorted(OmegaConf.missing_keys(node))
        problems += [line for key in unset for line in must_be_set(key, known)]
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
        typed = read_section(schema, tree)
    except ConfigError as error:
        raise ConfigError(list(dict.fromkeys([*problems, *error.problems]))) from None
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


def _drop(tree: Any, path: list[str]) -> None:
    for name in path[:-1]:
        tree = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree.pop(path[-1], None)
