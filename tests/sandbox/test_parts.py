"""Parts of the sandbox by themselves: the filter of calls, users, links, what tests want of a program."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from rs_aligner.sandbox import box, kernel, reading, seccomp, view
from rs_aligner.sandbox.link import Link, ProgramEnded

pytestmark = pytest.mark.timeout(60)

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM = 0xC000003E, 0xC00000B7


def answer(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """What a filter says of a call: a machine for the few instructions that it has."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    steps, place, held = list(struct.iter_unpack("=HBBI", code)), 0, 0
    while True:
        operation, then, otherwise, value = steps[place]
        place += 1
        if operation == 0x06:
            return value
        if operation == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[operation]
            place += then if holds else otherwise


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize(("column", "arch"), [(0, X86), (1, ARM)])
@pytest.mark.parametrize("writing", [False, True])
def test_the_filter_refuses_what_it_names_and_nothing_else(column: int, arch: int, writing: bool) -> None:
    code = seccomp._filter(column, writing)
    named = [seccomp._PROCESSES, seccomp._OTHERS, seccomp._NETWORK, seccomp._LEFT_BEHIND, seccomp._SYSTEM]
    never = {numbers[column] for group in named for numbers in group.values()} - {None}
    files = {numbers[column] for numbers in seccomp._FILES.values()} - {None}
    with_arguments = {seccomp._CLONE3[column], seccomp._OPENAT2[column]}
    for number in range(600):
        if number >= 463:
            assert answer(code, arch, number) == refused(errno.ENOSYS), "newer than the list"
            continue
        found = answer(code, arch, number)
        if number in never:
            assert found == refused(errno.EPERM), number
        elif number in files:
            assert found == (refused(errno.EACCES) if writing else ALLOW), number
        elif number == seccomp._CLONE[column]:
            assert found == refused(errno.EPERM), "a clone without flags is a process"
        elif number not in with_arguments:
            assert found == ALLOW, number
    assert answer(code, arch, seccomp._CLONE3[column]) == refused(errno.ENOSYS)
    assert answer(code, arch, seccomp._OPENAT2[column]) == (refused(errno.ENOSYS) if writing else ALLOW)


@pytest.mark.parametrize(("column", "arch"), [(0, X86), (1, ARM)])
def test_the_filter_looks_at_arguments(column: int, arch: int) -> None:
    code = seccomp._filter(column, writing=True)

    def says(call: tuple[int | None, int], *arguments: int) -> int:
        number = call[column]
        assert number is not None
        return answer(code, arch, number, *arguments)

    threads = 0x3D0F00  # what pthread_create asks for
    assert says(seccomp._CLONE, threads) == ALLOW
    assert says(seccomp._CLONE, 0x100 | 17) == refused(errno.EPERM)
    assert says(seccomp._OPENAT, -100 & (1 << 64) - 1, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE):
        assert says(seccomp._OPENAT, 0, 0, flags) == refused(errno.EACCES)
    assert says(seccomp._PRCTL, 1) == refused(errno.EPERM)
    assert says(seccomp._PRCTL, 15) == ALLOW  # a thread's name
    assert says(seccomp._PRLIMIT64, 0) == ALLOW
    assert says(seccomp._PRLIMIT64, 1) == refused(errno.EPERM)
    assert says(seccomp._FCNTL, 3, 1) == ALLOW
    assert says(seccomp._FCNTL, 3, 8) == refused(errno.EPERM)
    assert says(seccomp._IOCTL, 0, 0x5401) == ALLOW
    assert says(seccomp._IOCTL, 0, 0x5412) == refused(errno.EPERM)
    assert says(seccomp._SENDTO, 3, 1, 1, 0, 0) == ALLOW
    assert says(seccomp._SENDTO, 3, 1, 1, 0, 0x7F) == refused(errno.EPERM)
    assert says(seccomp._SENDTO, 3, 1, 1, 0, 0x7F << 32) == refused(errno.EPERM)


def test_calls_by_other_numbers_end_the_program() -> None:
    code = seccomp._filter(0, writing=False)
    assert answer(code, ARM, 0) == KILL
    assert answer(code, 0x40000003, 2) == KILL  # of 32 bits
    assert answer(code, X86, 0x40000000 | 57) == KILL  # x32


def test_another_processor_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(OSError, match="calls of a riscv64 are not known, only those of x86_64, aarch64"):
        kernel.architecture()


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ("0 0 4294967295", range(1 << 30, 1 << 31)),
        ("0 100000 65536", range(1000, 65534)),
        ("0 1000 1", None),
        ("0 1000 1\n1 100000 65536", range(1000, 65535)),
    ],
)
def test_programs_run_as_users_that_the_machine_has_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranges: str, expected: range | None
) -> None:
    (tmp_path / "uid_map").write_text(f"{ranges}\n")
    monkeypatch.setattr(box, "Path", lambda path: tmp_path / "uid_map")
    for process in (1, 4711, 4_194_303):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        first = box._free_users(16)
        if expected is None:
            assert first is None
        else:
            assert first in expected
            assert first + 16 in expected


def test_what_programs_may_read_is_libraries_only() -> None:
    shown = view.readable()
    assert shown
    assert not [path for path in shown if path in ("/", "/root", "/home", "/etc", "/tmp", "/proc", "/usr")]
    assert "/dev/null" in shown


def test_a_link_carries_messages_and_tells_an_end() -> None:
    (one_reads, two_writes), (two_reads, one_writes) = os.pipe(), os.pipe()
    one, two = Link(one_reads, one_writes), Link(two_reads, two_writes)
    one.send({"a": ["\ud800", 1]})
    assert two.receive() == {"a": ["\ud800", 1]}
    with pytest.raises(ValueError, match="the most"):
        one.send("x" * (1 << 24))
    os.write(two_writes, struct.pack("=I", 3) + b"{{{")
    with pytest.raises(ProgramEnded):
        one.receive()
    assert one.is_broken
    os.close(one_writes)
    with pytest.raises(ProgramEnded):
        two.receive()
    for descriptor in (one_reads, two_reads, two_writes):
        os.close(descriptor)


def test_a_message_that_is_too_long_is_not_waited_for() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\xff\xff\xff\xff")
    with pytest.raises(ProgramEnded):
        Link(reading, writing).receive()
    os.close(reading)
    os.close(writing)


def test_the_names_that_tests_want_of_a_program() -> None:
    code = """
import math
from solution import order as ignored, fill
total = 0
def helper(x):
    return x + shift
class Case:
    size = width
def test_one():
    assert order([y for y in range(3)]) == helper(len(z))
def test_with(argument): ...
"""
    assert reading.free_names(["x = 1\n", code]) == {"shift", "width", "order", "z", "solution"} - {
        "solution"
    }
    assert list(reading.from_solution(code)) == ["order", "fill"]
    tree = reading.prepared(code)
    assert list(reading.test_functions(tree)) == ["test_one"]
    assert {"order", "helper", "len", "range"} <= set(reading.called(tree))
    assert "math" not in set(reading.called(tree))
