"""What a process of ours ends with: four numbers, and what whoever starts it is to do then.

They are a contract with launchers, the Slurm scripts and supervisors. Ends by a signal are none of them: 143
for a SIGTERM before a run has begun to listen, 130 for a second Ctrl-C.
"""

from __future__ import annotations

FINISHED = 0
"""Everything was done."""
FAILED = 1
"""The run cannot go on by itself: a judge that failed too much, a killed rank, losses that are not finite."""
TO_BE_MENDED = 2
"""Something in the config, the data or the model has to be mended first."""
TO_BE_CONTINUED = 75
"""Stopped on purpose, by a signal or a time limit: the same command goes on (EX_TEMPFAIL of sysexits.h)."""
