"""The command `rs-aligner`: which of its commands is meant, and what it says without one."""

from __future__ import annotations

import pytest

from rs_aligner import __version__
from rs_aligner.cli.main import main
from rs_aligner.cli.table import COMMANDS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command_with_what_it_does(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for command in COMMANDS:
        assert [command.name, command.sentence] in lines


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rs-aligner {__version__}\n"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("trian", "; did you mean train?"), ("rewardmodel", "; did you mean reward-model?"), ("x", "")],
)
def test_an_unknown_command_is_one_line_with_the_nearest(
    wrong: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([wrong]) == 2
    said = f"error: rs-aligner has no command '{wrong}'{meant} (rs-aligner --help lists them)\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_can_be_called(command) -> None:
    assert callable(command.load())
