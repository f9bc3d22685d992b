"""Tab completion: `eval "$(rs-aligner completion bash)"`, which asks this program what may come next.

Commands, options, names of configs, keys (a section at a time) and the values that a key takes. Hydra's own
knows nothing of a command before the overrides, and of keys only those in the file. Left out on purpose:
values that are files, which the shell completes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from rs_aligner.cli import help as helps
from rs_aligner.cli.table import COMMANDS
from rs_aligner.exit_status import FINISHED, TO_BE_MENDED

# A word may hold `=` and `:`, at which bash breaks words, so the whole line is handed over.
BASH = """\
_rs_aligner() {
  local IFS=$'\\n' word=${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=($(rs-aligner completion candidates "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
  [[ ${COMPREPLY[0]} != *[=.] ]] || compopt -o nospace
}
complete -o default -F _rs_aligner rs-aligner
"""
ZSH = f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"
BREAKS = "=:"


def main(arguments: Sequence[str]) -> int:
    """Print the shell's script, or what may come next on a command line."""
    match list(arguments):
        case ["bash"]:
            print(BASH, end="")
        case ["zsh"]:
            print(ZSH, end="")
        case ["candidates", line]:
            print("\n".join(candidates(line)))
        case ["-h" | "--help"] | []:
            print('usage: eval "$(rs-aligner completion bash)"    (or zsh; put the line into ~/.bashrc)')
            return FINISHED if arguments else TO_BE_MENDED
        case [other, *_]:
            print(f"error: rs-aligner completion: {other!r} is no shell; bash and zsh are", file=sys.stderr)
            return TO_BE_MENDED
    return FINISHED


def candidates(line: str) -> list[str]:
    """What may stand where a command line ends, the part behind bash's last break of words.

    Args:
        line: up to the cursor, the program included.
    """
    words = line.split()[1:]
    word = "" if line[-1:].isspace() or not words else words.pop()
    found = sorted({one for one in _words(words, word) if one.startswith(word)})
    broken = max(word.rfind(sign) for sign in BREAKS) + 1
    return [one[broken:] for one in found]


def _words(before: Sequence[str], word: str) -> Iterator[str]:
    if not before:
        yield from (command.name for command in COMMANDS)
        return
    command, *rest = before
    if command in ("plan", "check"):
        if not rest:
            yield from helps.behind(command)
            return
        command, *rest = rest
    if command not in helps.OF:
        return

    from rs_aligner.cli.arguments import ALONE, WITH_VALUE, config_names
    from rs_aligner.cli.configured import conf_folder

    last = rest[-1] if rest else ""
    if WITH_VALUE.get(last) == "--config-name":
        folders = [conf_folder(), *_own_folders(rest)]
        yield from (name for folder in folders for name in config_names(folder))
    elif last in WITH_VALUE:
        return
    elif word.startswith("-"):
        yield from (option for option in (*WITH_VALUE, *ALONE) if option.startswith("--"))
    else:
        yield from _overrides(command, word)


def _own_folders(words: Sequence[str]) -> Iterator[Path]:
    """Those that the user names for configs."""
    for option, value in pairwise(words):
        if option in ("--config-dir", "-cd", "--config-path", "-cp"):
            yield Path(value)


def _overrides(command: str, word: str) -> Iterator[str]:
    """Keys, one section deeper than what is typed, and values of a key that is typed whole."""
    from rs_aligner.cli.scripts import SCRIPTS
    from rs_aligner.config.keys import sections, walk

    fields = dict(walk(SCRIPTS[command].schema))
    key, equals, _ = word.partition("=")
    plus = key[: len(key) - len(key.lstrip("+"))]
    key = key.lstrip("+")
    if equals:
        if key in fields:
            yield from (f"{plus}{key}={value}" for value in _values(fields[key].annotation))
        return
    depth = key.count(".")
    for name, field in fields.items():
        if name.count(".") == depth and name.startswith(key):
            yield plus + name + ("." if sections(field) else "=")


def _values(annotation: Any) -> Iterator[str]:
    """The values of a type that has few."""
    if annotation is bool:
        yield from ("true", "false")
    elif annotation is type(None):
        yield "null"
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _values(part)
