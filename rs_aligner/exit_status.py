"""What a process of ours ends with: four numbers, and what whoever starts it is to do then.

They are a contract with launchers, the Slurm scripts and supervisors. Ends by a signal are none of them: 143
for a SIGTERM before a run has begun to listen, 130 for a second Ctrl-C. Where a run goes on, its folder notes
at the error that ended it (`GoesOn`), and `to_be_done` says it behind the error's own line.
"""

from __future__ import annotations

from pathlib import Path

FINISHED = 0
"""Everything was done."""
FAILED = 1
"""The run cannot go on by itself: a judge that failed too much, a killed rank, losses that are not finite."""
TO_BE_MENDED = 2
"""Something in the config, the data or the model has to be mended first."""
TO_BE_CONTINUED = 75
"""Stopped on purpose, by a signal or a time limit: the same command goes on (EX_TEMPFAIL of sysexits.h)."""


class GoesOn(str):
    """The note of an error that ended a run: where a new start goes on with it."""

    __slots__ = ()

    @classmethod
    def told(cls, behind: tuple[int, Path] | None, *, resumes: bool) -> GoesOn:
        """The note in words that are true of a command and of a call from Python.

        Args:
            behind: the step of the newest checkpoint, and its folder; None where there is none.
            resumes: whether a start goes on with what is in the folder, as `exp_manager.resume_if_exists`.
        """
        where = "from the beginning, since it has no checkpoint"
        if behind is not None:
            where = "behind step {} ({})".format(*behind)
        key = "" if resumes else "with exp_manager.resume_if_exists=true "
        return cls(f"{key}the run goes on {where}")


def to_be_done(error: BaseException, status: int) -> str:
    """What whoever started a run is to do after an error, and where it then goes on.

    Args:
        error: what ended it.
        status: with which the process ends.

    Returns:
        To be put behind the error's message; "" where the error has no such note: nothing is promised then.
    """
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, GoesOn)]
    if not notes:
        return ""
    first = "mend that and start again" if status == TO_BE_MENDED else "start the same command again"
    return f"; {first}: {notes[-1]}"
