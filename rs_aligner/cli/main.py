"""The command `rs-aligner`: finds which of its commands is meant, and hands the arguments on.

Left out on purpose: the commands themselves, and whatever is slow to import.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from rs_aligner import __version__
from rs_aligner.cli.table import COMMANDS
from rs_aligner.exit_status import FINISHED, TO_BE_MENDED

HELP = """\
usage: rs-aligner COMMAND [ARGUMENTS]

A language model learns from the best of its own answers: rejection sampling with a remote judge.

{commands}

NeMo-Aligner's command lines, rs-aligner train_gpt_rs_actor.py ..., are answered with ours.
rs-aligner COMMAND --help says more of each. rs-aligner --version says which version this is.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line, without the program's name; by default this process's.

    Returns:
        The status to end with.

    Raises:
        SystemExit: the command ends the process itself.
    """
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(help_text(), end="")
        return FINISHED
    if name == "--version":
        print(f"rs-aligner {__version__}")
        return FINISHED
    for command in COMMANDS:
        if command.name == name:
            from rs_aligner.cli.errors import one_line_errors

            with one_line_errors():  # of what a user can get wrong, in any command
                return command.load()(rest) or FINISHED
    if name.endswith(".py"):
        from rs_aligner.config.nemo_scripts import SCRIPTS, translate

        if (script := name.rpartition("/")[2]) in SCRIPTS:
            translation = translate(script, rest)
            print(translation)
            return TO_BE_MENDED if translation.refused else FINISHED
    near = difflib.get_close_matches(name, [command.name for command in COMMANDS], 1, 0.4)
    meant = f"; did you mean {near[0]}?" if near else ""
    print(f"error: rs-aligner has no command {name!r}{meant} (rs-aligner --help lists them)", file=sys.stderr)
    return TO_BE_MENDED


def help_text() -> str:
    """All commands, a line each."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.sentence}" for command in COMMANDS]
    return HELP.format(commands="\n".join(lines))
