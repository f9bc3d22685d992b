"""One way out for errors: what needs no stack trace ends the process with one clear message."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rs_aligner.cli.ranks import rank
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.trainers.failures import RanksDiffer


@contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """End the process with one line where no stack trace helps.

    Status 2 for what a user has to mend first, 1 for a run that cannot go on, 130 for Ctrl-C.

    Args:
        others: what else means that this command cannot go on.
    """
    hopeless: tuple[type[Exception], ...] = (FloatingPointError, *others)
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


def _complain(error: BaseException | str, status: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status
