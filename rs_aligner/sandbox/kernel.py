"""Calls of the Linux kernel that Python has no name for, with errors as Python has them.

Left out on purpose: other systems, and processors but x86-64 and ARM 64, whose numbers of calls nobody here
has tried.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)

ARCHITECTURES = {"x86_64": 0, "aarch64": 1}
"""The processors whose calls are known, and which column of a table of numbers is theirs."""

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PIVOT_ROOT, _CAPSET = (155, 41), (126, 91)
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def architecture() -> int:
    """Which column of a table of numbers is this machine's.

    Raises:
        OSError: its calls are not known.
    """
    try:
        return ARCHITECTURES[platform.machine()]
    except KeyError:
        raise OSError(
            f"the calls of a {platform.machine()} are not known, only those of {', '.join(ARCHITECTURES)}"
        ) from None


def checked(result: int, what: str) -> int:
    """The result of a call that is below 0 where it failed.

    Raises:
        OSError: it failed.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A call by its number.

    Raises:
        OSError: it failed.
    """
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return checked(int(_libc.syscall(ctypes.c_long(number), *given)), what)


def prctl(option: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> None:
    """Change something about this process, as the call prctl does.

    Raises:
        OSError: it failed.
    """
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    given += [ctypes.c_ulong(0)] * (4 - len(given))
    checked(int(_libc.prctl(ctypes.c_int(option), *given)), f"prctl {option}")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones, as the call unshare does.

    Raises:
        OSError: it failed.
    """
    checked(int(_libc.unshare(ctypes.c_int(flags))), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount something, as the call mount does.

    Raises:
        OSError: it failed.
    """
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data) or None)
    checked(int(result), f"mounting {target}")


def change_root(folder: str) -> None:
    """Make a mount this process's root; the old one is no longer there.

    Raises:
        OSError: it failed.
    """
    os.chdir(folder)
    syscall("pivot_root", _PIVOT_ROOT[architecture()], b".", b".")
    checked(int(_libc.umount2(b".", ctypes.c_int(_MNT_DETACH))), "leaving the old root")
    os.chdir("/")


def drop_privileges() -> None:
    """Give up every capability, for good, and let nobody of the same user look into this process.

    Raises:
        OSError: it failed.
    """
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    syscall("capset", _CAPSET[architecture()], header, ctypes.create_string_buffer(24))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_DUMPABLE, 0)
