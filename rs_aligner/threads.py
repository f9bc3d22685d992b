"""How many threads a rank uses on a CPU: what the process may have, and what the work is worth.

A thread pays where a piece of work that is split among threads is long beside what splitting costs: a
wake-up, or a core that spins meanwhile. With small models pieces last some microseconds; there one thread is
faster, and on a core that others use, too, waiting threads cost several times the work. So the number follows
from the work, within the cores that this process really has: `os.cpu_count()` also counts those that its
affinity or its container's quota keep from it.

It depends on config, machine and shapes only, never on the clock or on the load: training on torch adds up in
another order with another number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

LEAST_WORK = 3 * 10**8
"""Multiplications of a model's largest part, a layer or the output layer, from which torch gets more threads.

Below it a second thread saves about a third on an idle machine (`benchmarks/threads.py --crossover`); small
models stay on one, so that a run beside other work costs what one thread costs.
"""


SPINS = 3000
"""Turns that a waiting thread of GNU's OpenMP makes before it sleeps: some 0.05 to 0.1 ms.

Its own 300,000 are right for a machine that is idle but for one process. Beside others they doubled the CPU
seconds of the 27 M shape's decoding, and its wall time; with these it takes 1.02 times those of one thread
(`benchmarks/threads.py --lines b`, on a busy machine). The next region mostly comes sooner than they end.
"""


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads sleep soon, unless a user has said how they wait; before torch is imported."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = str(SPINS)


@dataclass(frozen=True)
class Threads:
    """The threads of a rank.

    Attributes:
        most: at most so many.
        chosen: whether a user asked for this number: torch uses it then, whatever the work is.
        reason: where the number comes from; empty where nobody needs to be told.
    """

    most: int = 1
    chosen: bool = True
    reason: str = ""

    def for_work(self, multiplications: int) -> int:
        """Torch threads for a pass in which the model's largest part has so many multiplications, forward."""
        return self.most if self.chosen or multiplications >= LEAST_WORK else 1

    def __str__(self) -> str:
        some = str(self.most) if self.chosen or self.most == 1 else f"up to {self.most}, by the work"
        return f"{some} ({self.reason})"


ONE_THREAD = Threads()


def threads_of(
    wanted: int | None,
    ranks: int,
    environment: Mapping[str, str] = os.environ,
    *,
    root: Path = Path("/"),
) -> Threads:
    """The threads of each of a node's ranks.

    Args:
        wanted: what a user asked for (`trainer.threads`); None for a share of the cores.
        ranks: of the node.
        environment: where Slurm says what a task gets, and `OMP_NUM_THREADS` bounds it.
        root: where `proc` and `sys` lie; another one for tests.
    """
    if wanted is not None:
        return Threads(wanted, reason="trainer.threads")
    cores = usable_cores(root)
    counted = "1 usable core" if cores == 1 else f"{cores} usable cores"
    most, reason = max(1, cores // ranks), counted if ranks == 1 else f"{counted}, {ranks} ranks"
    if of_a_task := _count(environment.get("SLURM_CPUS_PER_TASK")):
        most, reason = min(cores, of_a_task), f"{counted}, SLURM_CPUS_PER_TASK={of_a_task}"
    told = _count(environment.get("OMP_NUM_THREADS", "").partition(",")[0])
    if told and told < most:
        most, reason = told, f"OMP_NUM_THREADS={told}"
    return Threads(most, chosen=False, reason=reason)


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that this process may keep busy: by its affinity and its control groups' quotas, at least 1.

    A quota of two and a half cores counts as two.

    Args:
        root: where `proc` and `sys` lie; another one for tests.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # not on every system
        cores = os.cpu_count() or 1
    quota = min(_quotas(root), default=float(cores))
    return max(1, min(cores, int(quota)))


def _count(text: str | None) -> int:
    return int(text) if text and text.strip().isdigit() else 0


def _quotas(root: Path) -> list[float]:
    """Cores that the quotas of this process's control groups allow; a group's own and those above it."""
    found = []
    for folder, is_v2 in control_groups(root, "cpu"):
        quota = _quota_v2(folder) if is_v2 else _quota_v1(folder)
        if quota is not None:
            found.append(quota)
    return found


def control_groups(root: Path, controller: str) -> list[tuple[Path, bool]]:
    """Folders of the groups that bound what this process may have, and whether they are of version 2.

    In a container the path that `/proc` tells may be the host's; then the mount's top is the container's.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[tuple[Path, bool]] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        is_v2 = controllers == ""
        if not is_v2 and controller not in controllers.split(","):
            continue
        mounts = ("unified", "") if is_v2 else (controllers, "cpu,cpuacct", controller)
        top = next((t for m in mounts if (t := root / "sys/fs/cgroup" / m).is_dir()), None)
        if top is None:
            continue
        inner = [part for part in path.split("/") if part and part != ".."]
        found += [(top.joinpath(*inner[:depth]), is_v2) for depth in range(len(inner), -1, -1)]
    return found


def _quota_v2(folder: Path) -> float | None:
    parts = _read(folder / "cpu.max").split()
    if len(parts) < 2 or not parts[0].isdigit() or not _count(parts[1]):
        return None  # "max", or no such file
    return int(parts[0]) / int(parts[1])


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_count(_read(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return quota / period if quota and period else None  # -1 is none


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
