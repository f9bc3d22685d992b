"""What really binds programs on this machine: found out by a program that tries."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from rs_aligner.sandbox.box import Sandbox
from rs_aligner.sandbox.jail import Limits
from rs_aligner.sandbox.jobs import Job, SandboxError, content_of, memory_file

NOT_PROTECTED = "NOT protected"
"""How a line begins that says so."""
_SECONDS = 20.0
_PROGRAM = """
import json

def tried(call):
    try:
        call()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    except ImportError as error:
        return str(error)
    return ""

def fork():
    import os
    if os.fork() == 0:
        os._exit(0)

def connect():
    import socket
    socket.socket()

def signal_parent():
    import os
    os.kill(PARENT, 0)

def import_something():
    import colorsys, wave

print(json.dumps({
    "fork": tried(fork),
    "network": tried(connect),
    "signal": tried(signal_parent),
    "library": tried(import_something),
    "read": tried(lambda: open("/etc/passwd").read()),
    "write": tried(lambda: open(WRITTEN, "x").close()),
    "memory": tried(lambda: bytearray(MEMORY)),
    "user": __import__("os").getuid(),
}))
"""


def found(box: Sandbox, limits: Limits) -> list[str]:
    """Lines that say what holds for programs, and what does not.

    Args:
        box: the sandbox.
        limits: what it was made with.

    Raises:
        SandboxError: a program can do what none may, or cannot do what all have to.
    """
    written = os.path.join(tempfile.gettempdir(), f"rs_aligner_probe_{os.getpid()}_{id(box)}")
    said = _ask(box, f"PARENT, MEMORY, WRITTEN = {os.getpid()}, {limits.memory}, {written!r}\n")
    with contextlib.suppress(FileNotFoundError):
        os.remove(written)
        raise SandboxError("programs can write files of this machine")
    for what, sentence in (
        ("fork", "programs can start processes"),
        ("network", "programs can reach the network"),
        ("signal", "programs can send signals to others"),
        ("memory", "the limit of memory does not bind programs"),
    ):
        if not said[what]:
            raise SandboxError(sentence)
    if said["library"]:
        raise SandboxError(
            f"programs cannot read the interpreter's library ({said['library']}), which lies where the user "
            "that they run as may not look; set judge.kwargs.python to an interpreter that all may read, "
            "such as /usr/bin/python3"
        )
    return list(_told(box, limits, said))


def _ask(box: Sandbox, head: str) -> dict[str, Any]:
    output = memory_file()
    try:
        with box.slot() as slot:
            job = Job("script", {"program": head + _PROGRAM}, {"stdout": output})
            (end,) = box.run(slot, [job], _SECONDS)
        text = content_of(output, 1 << 16)
    finally:
        os.close(output)
    if end.status or not text:
        raise SandboxError(f"a program that tries the sandbox out ended with status {end.status}")
    said: dict[str, Any] = json.loads(text)
    return said


def _told(box: Sandbox, limits: Limits, said: dict[str, Any]) -> Iterator[str]:
    megabytes = limits.memory >> 20, limits.output >> 20
    yield (
        f"programs run on Python {box.version} in one process each, which can start no other, with "
        f"{megabytes[0]} MiB of memory and {megabytes[1]} MiB of output, without network"
    )
    if said["user"] == os.getuid():
        yield f"they run as this process's own user ({said['user']}), without its privileges"
    else:
        yield f"they run as users that nobody else has, from {box.user} on"
    if box.is_private:
        yield "they see a file system of their own: libraries, read-only, and an empty /tmp; no other process"
        return
    why = f" ({box.refusal})" if box.refusal else ""
    yield f"there are no namespaces here{why}; programs cannot write files"
    if said["read"]:
        yield "Landlock lets them read nothing but libraries"
    else:
        yield f"{NOT_PROTECTED}: they can read what their user may, data files with the tests in them, too"
