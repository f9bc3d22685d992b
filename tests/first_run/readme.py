"""The commands and programs of the README and of the guide to one machine, as they stand there."""

from __future__ import annotations

import re
import shlex

from tests.conftest import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs" / "guides" / "one_machine.md")
README = "\n".join(page.read_text() for page in PAGES)  # the guide goes on where the README ends


def blocks(language: str) -> list[str]:
    """All blocks of code in that language."""
    return [block.strip() for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)]


def script_arguments(script: str) -> list[str]:
    """The arguments of the one command there that runs this script."""
    [command] = [block for block in blocks("bash") if script in block]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == [".venv/bin/python", f"examples/{script}"]
    return words[2:]


def with_rate(words: list[str], rate: float) -> list[str]:
    """The same arguments with another learning rate, which has to be there."""
    [old] = [word for word in words if word.startswith("model.optim.lr=")]
    return [f"model.optim.lr={rate}" if word == old else word for word in words]
