"""The arguments of a command that reads a config: whether Hydra will understand them, and one line if not.

Hydra's own answers are a usage, or a list of places that were looked in. Left out on purpose: which keys
there are, which `load_config` says of the composed config.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rs_aligner.config.base import ConfigError, Section
from rs_aligner.config.keys import walk

WITH_VALUE = {
    **dict.fromkeys(("--config-name", "-cn"), "--config-name"),
    **dict.fromkeys(("--config-dir", "-cd"), "--config-dir"),
    **dict.fromkeys(("--config-path", "-cp"), "--config-path"),
    **dict.fromkeys(("--cfg", "-c"), "--cfg"),
    **dict.fromkeys(("--package", "-p"), "--package"),
    "--experimental-rerun": "--experimental-rerun",
}
ALONE = (
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"),
    *("--info", "-i", "--shell-completion", "-sc"),
)


@dataclass(frozen=True)
class Arguments:
    """What was given.

    Attributes:
        options: values of Hydra's options, by their long names; the last one counts.
        overrides: the rest, as it was given.
        switches: Hydra's options that have no value.
    """

    options: dict[str, str]
    overrides: tuple[str, ...]
    switches: tuple[str, ...] = ()


def read(arguments: Sequence[str], schema: type[Section]) -> Arguments:
    """Take the arguments apart as Hydra will.

    Raises:
        ConfigError: Hydra would not understand one of them; with the nearest that it would.
    """
    options: dict[str, str] = {}
    overrides: list[str] = []
    switches: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = _in_full(name)
        if name in WITH_VALUE:
            if not equals and not rest:
                raise ConfigError([f"{name} needs a value"])
            options[WITH_VALUE[name]] = value if equals else rest.pop(0)
        elif name in ALONE:
            switches.append(name)
        else:
            raise ConfigError([_unknown(argument, schema)])
    for override in overrides:
        _check(override, schema)
    return Arguments(options, tuple(overrides), tuple(switches))


def check_config(given: Arguments, name: str, folders: Sequence[Path]) -> None:
    """See to it that the config that is to be read is there.

    Args:
        given: the arguments.
        name: of the config.
        folders: where Hydra looks for it.

    Raises:
        ConfigError: it is not; with the nearest that is.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError([f"there is no folder {folder} (relative to {Path.cwd()}) to find configs in"])
    if any(override.lstrip("+").startswith("hydra.searchpath") for override in given.overrides):
        return  # it may be anywhere
    wanted = name.removesuffix(".yaml")
    if any((folder / f"{wanted}.yaml").is_file() for folder in folders):
        return
    there = sorted({one for folder in folders for one in config_names(folder)})
    near = difflib.get_close_matches(wanted, there, 1, 0.4)
    where = " or ".join(str(folder) for folder in folders)
    meant = f"; the nearest is {near[0]}" if near else f"; there are {', '.join(there) or 'none'}"
    raise ConfigError([f"--config-name {name}: there is no {wanted}.yaml in {where}{meant}"])


def config_names(folder: Path) -> Iterator[str]:
    """The names by which the configs of a folder, and of those right below it, are called."""
    for file in sorted((*folder.glob("*.yaml"), *folder.glob("*/*.yaml"))):
        yield file.relative_to(folder).with_suffix("").as_posix()


def _in_full(name: str) -> str:
    """An option that was cut short, as argparse understands it."""
    known = (*WITH_VALUE, *ALONE)
    if name in known or not name.startswith("--"):
        return name
    longer = [one for one in known if one.startswith(name)]
    return longer[0] if len(longer) == 1 else name


def _unknown(argument: str, schema: type[Section]) -> str:
    name, _, value = argument.partition("=")
    bare = name.lstrip("-")
    if "." in bare:
        return f"{argument} is no option; keys are set without dashes: {bare}={value or 'VALUE'}"
    near = difflib.get_close_matches(name, (*WITH_VALUE, *ALONE), 1, 0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{name} is no option{meant} Keys are set as KEY=VALUE, e.g. {_some_key(bare, schema)}=VALUE"


def _check(override: str, schema: type[Section]) -> None:
    """See to it that an override can be read."""
    if "=" not in override and not override.startswith("~"):
        key = override.lstrip("+")
        hint = f"{_some_key(key, schema)}=VALUE"
        raise ConfigError([f"{override!r} sets nothing: write KEY=VALUE, e.g. {hint}"])

    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            [
                f"{override} cannot be read as KEY=VALUE: {reason}. Quote lists, sections and texts for the "
                "shell and for Hydra: 'key=[a, b]', 'key={a: 1}', \"key='a text, with a comma'\""
            ]
        ) from None


def _some_key(like: str, schema: type[Section]) -> str:
    keys = [key for key, _ in walk(schema)]
    by_name = [key for key in keys if key.rpartition(".")[2] == like.rpartition(".")[2]]
    return (by_name or difflib.get_close_matches(like, keys, 1, 0.0) or keys)[0]
