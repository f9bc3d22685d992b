"""A terminal for tests: a program at a real one (`pty`), and what stands on its screen in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PIECES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+|\x1b")


def at_a_terminal(command: Sequence[str], *, width: int = 100, height: int = 40) -> tuple[str, int]:
    """All that a program wrote to its terminal, and its status."""
    child, terminal = pty.fork()
    if child == 0:
        try:
            os.chdir(ROOT)
            os.environ |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
            for name in ("NO_COLOR", "COLUMNS", "LINES"):
                os.environ.pop(name, None)
            os.execv(sys.executable, [sys.executable, *command])
        finally:
            os._exit(127)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    content = b""
    try:
        while piece := os.read(terminal, 65536):
            content += piece
    except OSError:  # the program has ended
        pass
    finally:
        os.close(terminal)
    return content.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def screen(content: str) -> list[str]:
    """The lines of a screen that is high enough. It knows what a live view needs, and no more.

    Raises:
        AssertionError: another control sequence, which would do something to a terminal.
    """
    lines, y, x = [""], 0, 0
    for piece in _PIECES.findall(content):
        if piece == "\r":
            x = 0
        elif piece == "\n":
            y += 1
            lines += [""] * (y + 1 - len(lines))
        elif piece.startswith("\x1b"):
            number, what = piece[2:-1], piece[-1:]
            assert "?" not in number, f"a mode of the terminal is changed: {piece!r}"
            if what == "A":
                y = max(0, y - int(number or 1))
            elif what == "K" and number == "2":
                lines[y] = ""
            else:
                assert what == "m", f"{piece!r} reached the terminal"
        else:
            assert piece.isprintable(), f"{piece!r} reached the terminal"
            lines[y] = lines[y].ljust(x)[:x] + piece + lines[y][x + len(piece) :]
            x += len(piece)
    return lines
