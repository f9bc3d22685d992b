"""Claims on a folder: small files that say which process has it, and what NFS needs to write and read them.

Left out on purpose: which claim holds (`lease`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from rs_aligner.child import process_started
from rs_aligner.record.sealed import seal, unseal

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_NAME = re.compile(r"claim_(\d{6,})\.json")


@dataclass(frozen=True)
class Owner:
    """Who has a folder.

    Attributes:
        host: its name.
        place: the boot of the host and its process ids: processes of the same place can see each other.
        pid: the process.
        process_started: when, as the kernel counts; "" where it does not tell. A reused pid has another.
        token: drawn at random for each claim.
        since: the owner's time of day, for people.
    """

    host: str
    place: str
    pid: int
    process_started: str
    token: str
    since: str

    @classmethod
    def here(cls) -> Owner:
        """This process, with a new token."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            place=_place(),
            pid=pid,
            process_started=process_started(pid) or "",
            token=secrets.token_hex(16),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        )

    def is_dead(self, place: str) -> bool | None:
        """Whether it has ended, as seen from a place; None where that cannot be seen from there."""
        if not self.place or self.place != place:
            return None
        now = process_started(self.pid)
        return now is None or bool(self.process_started and now and now != self.process_started)

    def to_bytes(self) -> bytes:
        """The claim, one line of JSON."""
        return json.dumps(seal(asdict(self))).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> Self | None:
        """Whose claim this is; None where that cannot be read."""
        try:
            record = unseal(json.loads(content))
            return cls(**record) if set(record) == {field.name for field in fields(cls)} else None
        except (ValueError, RecursionError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class Claim:
    """A claim as it lies there; the owner of one that cannot be read is not known."""

    path: Path
    content: bytes
    touched: int
    owner: Owner | None

    @property
    def name(self) -> tuple[Path, bytes]:
        """What tells it from every other claim."""
        return self.path, self.content


def number_of(path: Path) -> int:
    """The number in a claim's name; 0 for another file."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def read_claim(path: Path) -> bytes | None:
    """What a claim holds, asked anew: opening a file is what NFS does not answer from memory."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:
            return None
        raise


def claims_in(folder: Path) -> list[Claim]:
    """All claims that are there, the newest last."""
    with contextlib.suppress(FileNotFoundError):
        paths = sorted((path for path in folder.iterdir() if number_of(path)), key=number_of)
        return [claim for claim in map(_claim, paths) if claim is not None]
    return []


def _claim(path: Path) -> Claim | None:
    try:
        content = read_claim(path)
        touched = path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    except PermissionError:  # another user's, who keeps it from us
        content, touched = b"", path.stat().st_mtime_ns
    return None if content is None else Claim(path, content, touched, Owner.from_bytes(content))


def link(unfinished: Path, path: Path) -> None:
    """Give a file a second name that nobody else has.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb") as file:  # not whole at once: until it is, it is a claim of nobody knows whom
            file.write(unfinished.read_bytes())


def _place() -> str:
    """The boot of this host and the name space of its process ids; "" where the kernel does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
