"""The kernel's calls that a program is refused, whoever it runs as: seccomp(2), a filter that nothing undoes.

With it a program has one process, which starts no other and becomes no other: so nothing outlives it,
whatever it tries. It signals nobody, reaches no network, sees no other process's memory, and leaves nothing
in the kernel (shared memory, queues, keys). Where its files are not private, it opens none for writing.

It names what is refused, not what is allowed; calls that are newer than the list are not there: interpreters
differ in what they call, and a program that fails for a harmless call would be judged wrongly. Calls by
another processor's numbers end the program.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from rs_aligner.sandbox.kernel import architecture, prctl

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_X32 = 0x40000000  # the numbers of the x32 calls begin here
_CLONE_THREAD = 0x10000
_WRITING = 0o3 | 0o100 | 0o1000 | 0o20000000  # O_ACCMODE, O_CREAT, O_TRUNC and O_TMPFILE's own bit

# On x86-64 and on ARM 64; None where there is no such call.
Numbers = tuple[int | None, int | None]

_PROCESSES: dict[str, Numbers] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
}
_OTHERS: dict[str, Numbers] = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
_NETWORK: dict[str, Numbers] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),  # its address lies in memory, where no filter sees it
    "sendmmsg": (307, 269),
}
_LEFT_BEHIND: dict[str, Numbers] = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),  # memory that no limit of a process counts
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_SYSTEM: dict[str, Numbers] = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "quotactl": (179, 60),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "personality": (135, 92),
}
_FILES: dict[str, Numbers] = {
    "creat": (85, None),
    "truncate": (76, 45),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
_CLONE, _CLONE3, _PRCTL, _PRLIMIT64 = (56, 220), (435, 435), (157, 167), (302, 261)
_FCNTL, _IOCTL, _SENDTO = (72, 25), (16, 29), (44, 206)
_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), (437, 437)
_PRCTL_REFUSED = (1, 4, 36)  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER
_FCNTL_REFUSED = (8, 15, 10)  # F_SETOWN, F_SETOWN_EX, F_SETSIG: signals to another process
# TIOCSTI, FIOSETOWN, SIOCSPGRP; attributes of files: FS_IOC_SETFLAGS (of 32 bits, too), FS_IOC_FSSETXATTR.
_IOCTL_REFUSED = (0x5412, 0x8901, 0x8902, 0x40086602, 0x40046602, 0x401C5820)
_NEWER = 463  # calls from here on were not known when this was written, by the same numbers everywhere


def forbid(*, writing: bool) -> None:
    """Refuse this process, for good, what no program needs.

    Args:
        writing: whether to refuse it, too, to open files for writing and to change folders.

    Raises:
        OSError: the kernel has no such filters, or its calls are not known.
    """
    code = _filter(architecture(), writing)
    program = ctypes.create_string_buffer(code, len(code))
    pointer = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(program)))
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, pointer)


def _filter(column: int, writing: bool) -> bytes:
    """The filter's program for the classic BPF machine; `column` is the processor's."""
    code = (
        _step(_LOAD, 4) + _step(_EQUAL, _AUDIT_ARCH[column], 1, 0) + _step(_RETURN, _KILL) + _step(_LOAD, 0)
    )
    if column == 0:
        code += _step(_AT_LEAST, _X32, 0, 1) + _step(_RETURN, _KILL)
    code += _step(_AT_LEAST, _NEWER, 0, 1) + _refusal(errno.ENOSYS)
    for group in (_PROCESSES, _OTHERS, _NETWORK, _LEFT_BEHIND, _SYSTEM):
        code += _all_of(group, column, errno.EPERM)
    code += _one(_CLONE3[column], errno.ENOSYS)  # its flags lie in memory; libraries then take clone
    code += _when(_CLONE[column], _argument(0) + _step(_ANY_BIT, _CLONE_THREAD, 1, 0) + _refusal(errno.EPERM))
    code += _when(_PRCTL[column], _argument(0) + _unless(_PRCTL_REFUSED))
    code += _when(_PRLIMIT64[column], _argument(0) + _step(_EQUAL, 0, 1, 0) + _refusal(errno.EPERM))
    code += _when(_FCNTL[column], _argument(1) + _unless(_FCNTL_REFUSED))
    code += _when(_IOCTL[column], _argument(1) + _unless(_IOCTL_REFUSED))
    address = _step(_EQUAL, 0, 1, 0) + _refusal(errno.EPERM)
    code += _when(_SENDTO[column], _argument(4) + address + _argument(4, high=True) + address)
    if writing:
        code += _all_of(_FILES, column, errno.EACCES) + _one(_OPENAT2[column], errno.ENOSYS)
        opens = _step(_ANY_BIT, _WRITING, 0, 1) + _refusal(errno.EACCES)
        code += _when(_OPEN[column], _argument(1) + opens) + _when(_OPENAT[column], _argument(2) + opens)
    return code + _step(_RETURN, _ALLOW)


def _step(operation: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; `then` and `otherwise` are how many of the next ones are left out."""
    return struct.pack("=HBBI", operation, then, otherwise, value)


def _refusal(number: int) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _argument(index: int, high: bool = False) -> bytes:
    """Load half of an argument of the call: struct seccomp_data, both processors being little-endian."""
    return _step(_LOAD, 16 + 8 * index + 4 * high)


def _unless(refused: tuple[int, ...]) -> bytes:
    return b"".join(_step(_EQUAL, value, 0, 1) + _refusal(errno.EPERM) for value in refused)


def _one(call: int | None, number: int) -> bytes:
    return b"" if call is None else _step(_EQUAL, call, 0, 1) + _refusal(number)


def _all_of(group: dict[str, Numbers], column: int, number: int) -> bytes:
    return b"".join(_one(numbers[column], number) for numbers in group.values())


def _when(call: int | None, refusals: bytes) -> bytes:
    """What looks at a call's arguments, and allows what it does not refuse."""
    if call is None:
        return b""
    block = refusals + _step(_RETURN, _ALLOW)
    return _step(_EQUAL, call, 0, len(block) // 8) + block
