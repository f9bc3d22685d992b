"""One way out for errors: what needs no stack trace ends the process with one clear message.

Where the error ended a run that a new start goes on with, the message ends with that.
"""

from __future__ import annotations

import errno
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rs_aligner import stopping
from rs_aligner.cli.ranks import rank
from rs_aligner.exit_status import FAILED, TO_BE_CONTINUED, TO_BE_MENDED, to_be_done

_OF_THE_MACHINE = {
    errno.ENOSPC: "",
    errno.EDQUOT: "",
    errno.EIO: "",
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
# What every rank comes to, so that one of them says it.
_OF_ALL_RANKS = (
    "rs_aligner.reward.protocol.JudgeFailed",
    "rs_aligner.sample_request.SamplingFailed",
    "rs_aligner.trainers.failures.RanksDiffer",
    "builtins.FloatingPointError",
)
# What gloo and NCCL say of a peer that is gone, or silent for longer than `trainer.timeout_minutes`.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")


@contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """End the process with one line where no stack trace helps.

    The statuses are those of `exit_status`, and 130 for a Ctrl-C that was not heeded as a wish to stop.

    Args:
        others: what else means that this command cannot go on.
    """
    try:
        yield
    except _imported(*_OF_ALL_RANKS) as error:
        sys.exit(_complain(error, FAILED) if rank() == 0 else FAILED)
    except (ValueError, ConnectionError) as error:
        sys.exit(_complain(error, TO_BE_MENDED))
    except KeyboardInterrupt:
        sys.exit(_say("error: interrupted", 128 + signal.SIGINT))
    except stopping.Stopped as stop:  # of every rank
        if rank() == 0:
            again = to_be_done(stop, TO_BE_CONTINUED) or "; start the same command again"
            _say(f"stopped ({stop.reason}){again}", TO_BE_CONTINUED)
        sys.exit(TO_BE_CONTINUED)
    except _imported("rs_aligner.record.lease.LeaseLost") + others as error:
        sys.exit(_complain(error, FAILED))
    except Exception as error:
        if (lacking := _lacking(error)) is not None:
            sys.exit(_complain(error, TO_BE_MENDED, said=lacking))
        if not any(sign in str(error) for sign in _LOST):
            raise
        where = f"rank {rank()} on {socket.gethostname()}"
        lost = f"{where}: another rank has ended, or does not answer: {error}"
        sys.exit(_complain(error, FAILED, said=lost))


def _imported(*names: str) -> tuple[type[Exception], ...]:
    """Of these classes, those whose modules are imported: no other can have been raised.

    So that an error in the config is told without importing what asks judges and trains.
    """
    split = [name.rpartition(".") for name in names]
    return tuple(getattr(sys.modules[module], name) for module, _, name in split if module in sys.modules)


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


def _complain(error: BaseException, status: int, said: str | None = None) -> int:
    """Say what ended the process, in other words where they are given, and what is to be done."""
    return _say(f"error: {error if said is None else said}{to_be_done(error, status)}", status)


def _say(line: str, status: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return status
