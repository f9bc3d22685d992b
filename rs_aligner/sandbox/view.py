"""What of the machine's files a program sees: a private root where that is allowed, else Landlock's rules.

With namespaces the root is a file system in memory that holds the interpreter's library and the system's,
read-only, and an empty `/tmp`, new for each program; there is no network and no other process. Users who are
not root get them in a user namespace, where the system allows it; containers often do not. Without them
Landlock (Linux 5.13) lets a program read nothing but the same folders. Neither has `/proc`: it tells of other
processes.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

from rs_aligner.sandbox import kernel

# What the root is mounted upon: a folder that is always there, and holds nothing that a program reads.
_MOUNT_POINT = str(Path(__file__).parent)
_SYSTEM = (
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/lib",
    "/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_KEPT_FLAGS = {  # of a mount that belongs to another user's namespace, which may not be taken off
    os.ST_NOSUID: kernel.MS_NOSUID,
    os.ST_NODEV: kernel.MS_NODEV,
    os.ST_NOEXEC: kernel.MS_NOEXEC,
    os.ST_NOATIME: 1024,
    os.ST_NODIRATIME: 2048,
    os.ST_RELATIME: 1 << 21,
}
_PRIVATE = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULES_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many rights to files each version of Landlock knows


def readable() -> list[str]:
    """What programs may read: the libraries of the interpreter and of the system, and a few devices.

    Folders of the interpreter come in no order; one within another is left out.
    """
    wanted = [path for path in (*sys.path, *_SYSTEM) if path and os.path.exists(path)]
    inside = [
        path
        for path in dict.fromkeys(map(os.path.abspath, wanted))
        if not any(path != other and path.startswith(f"{other}/") for other in map(os.path.abspath, wanted))
    ]
    return inside + [path for path in _DEVICES if os.path.exists(path)]


def leave_namespaces() -> None:
    """Take new namespaces for the processes that this one forks, and for itself but for the processes' ids.

    Raises:
        OSError: the system does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(_PRIVATE)
    except PermissionError:
        kernel.unshare(_PRIVATE | kernel.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def make_root() -> None:
    """Make the private root, and go there. After `leave_namespaces`, in a forked process.

    Raises:
        OSError: the system does not allow it.
    """
    shown, root = readable(), _MOUNT_POINT
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", root, "tmpfs", flags, "size=256k,mode=755")
    for path in shown:
        _show(path, f"{root}{path}")
    os.mkdir(f"{root}/tmp")
    kernel.mount(None, root, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | flags)
    kernel.change_root(root)


def make_tmp(size: int, user: int, group: int) -> None:
    """Give this process an empty `/tmp` of its own, gone with it, and go there. Within a private root.

    Raises:
        OSError: the system does not allow it.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    options = f"size={size},nr_inodes=4096,mode=700,uid={user},gid={group}"
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)
    os.chdir("/tmp")


class Rules:
    """Landlock's rules that let a process read what is `readable`, and nothing else.

    Raises:
        OSError: the kernel has none.
    """

    def __init__(self) -> None:
        version = kernel.syscall("Landlock", _CREATE_RULESET, None, 0, _RULES_VERSION)
        handled = (1 << _RIGHTS.get(version, 16)) - 1
        attributes = ctypes.create_string_buffer(struct.pack("=Q", handled))
        self._rules = kernel.syscall("Landlock", _CREATE_RULESET, attributes, 8, 0)
        for path in readable():
            self._allow(path)

    def enforce(self) -> None:
        """Bind this process, for good; it has given up new privileges."""
        kernel.syscall("Landlock", _RESTRICT_SELF, self._rules, 0)
        os.close(self._rules)

    @property
    def descriptor(self) -> int:
        """The descriptor to keep open until `enforce`."""
        return self._rules

    def _allow(self, path: str) -> None:
        rights = _READ_FILE | (_READ_DIR | _EXECUTE if os.path.isdir(path) else 0)
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
            kernel.syscall("Landlock", _ADD_RULE, self._rules, _PATH_BENEATH, rule, 0)
        finally:
            os.close(descriptor)


def _show(source: str, target: str) -> None:
    """Show a folder or a file of the machine, read-only, at a place of the new root."""
    if os.path.isdir(source):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
    found = os.statvfs(target).f_flag
    kept = sum(flag for seen, flag in _KEPT_FLAGS.items() if found & seen)
    kernel.mount(None, target, None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kept)
