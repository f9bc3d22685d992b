"""The nouns of the sandbox, and files in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


class SandboxError(RuntimeError):
    """A program could not be run, through no fault of its own."""


@dataclass(frozen=True)
class Job:
    """What runs in a process of its own.

    Attributes:
        role: `script`, `calls`, `program` or `tests`: see `zygote`.
        payload: what the role takes.
        descriptors: what it reads and writes, by name.
    """

    role: str
    payload: Mapping[str, Any]
    descriptors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        status: exit status, below 0 for a signal.
        is_late: whether it was ended when its time was over.
        cpu_seconds: of the processor.
    """

    status: int
    is_late: bool
    cpu_seconds: float


@contextlib.contextmanager
def linked(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """Two jobs with pipes between them, which are closed here at the end."""
    if len(jobs) == 1:
        yield jobs
        return
    (one_reads, two_writes), (two_reads, one_writes) = os.pipe(), os.pipe()
    pipes = ({"reading": one_reads, "writing": one_writes}, {"reading": two_reads, "writing": two_writes})
    try:
        yield [
            replace(job, descriptors={**job.descriptors, **ends})
            for job, ends in zip(jobs, pipes, strict=True)
        ]
    finally:
        for ends in pipes:
            for end in ends.values():
                os.close(end)


def memory_file(content: bytes = b"") -> int:
    """A file in memory, to be closed by the caller; its descriptor."""
    descriptor = os.memfd_create("rs_aligner", os.MFD_CLOEXEC)
    while content:
        content = content[os.write(descriptor, content) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def content_of(descriptor: int, most: int) -> bytes:
    """What is in a file in memory, at most so many bytes."""
    return os.pread(descriptor, most, 0)
