"""One way out for errors: what needs no stack trace ends the process with one clear message."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rs_aligner.cli.ranks import rank
from rs_aligner.record.lease import LeaseLost
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.trainers.failures import RanksDiffer

_OF_THE_MACHINE = {
    errno.ENOSPC: "",
    errno.EDQUOT: "",
    errno.EROFS: "",
    errno.EACCES: "",
    errno.EPERM: "",
    errno.EMFILE: " (raise ulimit -n)",
    errno.ENFILE: "",
    errno.ENOMEM: "",
}
"""What the system says where it lacks something, with what to do besides what that says itself."""
_OUT_OF_MEMORY = (
    "outofmemoryerror",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
)


@contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """End the process with one line where no stack trace helps.

    Status 2 for what a user has to mend first, 1 for a run that cannot go on, 130 for Ctrl-C.

    Args:
        others: what else means that this command cannot go on.
    """
    hopeless: tuple[type[Exception], ...] = (FloatingPointError, LeaseLost, *others)
    try:
        yield
    except (ValueError, ConnectionError) as error:
        sys.exit(_complain(error, 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))
    except (JudgeFailed, RanksDiffer) as error:  # of every rank; one says so
        sys.exit(_complain(error, 1) if rank() == 0 else 1)
    except hopeless as error:
        sys.exit(_complain(error, 1))
    except Exception as error:
        if (lacking := _lacking(error)) is None:
            raise
        sys.exit(_complain(lacking, 2))


def _lacking(error: Exception) -> str | None:
    """What the machine has too little of, where that is why something failed; torch has no class for it."""
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = f": {error.filename}" if error.filename else ""
        return f"{(error.strerror or str(error)).lower()}{where}{_OF_THE_MACHINE[error.errno]}"
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(words in said.lower() for words in _OUT_OF_MEMORY):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        bound = "" if limit == resource.RLIM_INFINITY else f" (ulimit -v allows {limit // 1024:,} KiB)"
        return f"out of memory{bound}: {str(error).strip().partition(chr(10))[0] or 'nothing more is known'}"
    return None


def _complain(error: BaseException | str, status: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status
