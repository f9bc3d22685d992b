"""How many threads there are: by affinity and quotas, by what Slurm and the user say, and by the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rs_aligner.threads import LEAST_WORK, SPINS, Threads, threads_of, usable_cores, wait_briefly


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores, of which this process may use 16."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8, 24)), raising=False)


def machine(root: Path, groups: str, **files: str) -> Path:
    """A machine's `/proc` and `/sys`, with a process in these control groups."""
    where = {"proc/self/cgroup": groups, **files}
    for name, text in where.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, groups: str = "0::/\n", **quotas: str) -> Path:
    files = {f"sys/fs/cgroup/{folder}/cpu.max": text for folder, text in quotas.items()}
    return machine(root, groups, **files)


def test_cores_are_those_of_the_affinity_and_not_of_the_machine(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 16


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", 16),
        ("400000 100000\n", 4),
        ("250000 100000\n", 2),  # two and a half
        ("50000 100000\n", 1),
        ("3200000 100000\n", 16),
        ("max\n", 16),
        ("", 16),
    ],
)
def test_a_containers_quota_bounds_them(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(machine(tmp_path, "0::/\n", **{"sys/fs/cgroup/cpu.max": quota})) == cores


def test_the_quota_of_a_group_above_counts_too(tmp_path: Path) -> None:
    """As under systemd or Kubernetes: the pod's is less than the container's."""
    root = v2(
        tmp_path,
        "0::/pods/pod7/box\n",
        **{"pods/pod7/box": "800000 100000", "pods/pod7": "300000 100000", "pods": "max 100000"},
    )
    assert usable_cores(root) == 3


def test_a_path_of_the_host_that_a_container_does_not_see_leaves_its_own_top(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/docker/0a1b2c\n", **{"sys/fs/cgroup/cpu.max": "500000 100000"})
    assert usable_cores(root) == 5


@pytest.mark.parametrize(("quota", "cores"), [("-1", 16), ("600000", 6), ("40000", 1)])
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_so_does_a_quota_of_the_first_version(tmp_path: Path, mount: str, quota: str, cores: int) -> None:
    top = f"sys/fs/cgroup/{mount}"
    files = {f"{top}/job/cpu.cfs_quota_us": quota, f"{top}/job/cpu.cfs_period_us": "100000"}
    groups = f"9:name=systemd:/\n4:memory:/x\n2:{mount}:/job\n"
    assert usable_cores(machine(tmp_path, groups, **files)) == cores


def test_where_there_are_no_affinities_all_cores_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path) == 64


@pytest.mark.parametrize(
    ("wanted", "ranks", "environment", "most", "reason"),
    [
        (None, 1, {}, 16, "16 usable cores"),
        (None, 3, {}, 5, "16 usable cores, 3 ranks"),
        (None, 32, {}, 1, "16 usable cores, 32 ranks"),
        (None, 4, {"SLURM_CPUS_PER_TASK": "6"}, 6, "16 usable cores, SLURM_CPUS_PER_TASK=6"),
        (None, 4, {"SLURM_CPUS_PER_TASK": "40"}, 16, "16 usable cores, SLURM_CPUS_PER_TASK=40"),
        (None, 1, {"OMP_NUM_THREADS": "2"}, 2, "OMP_NUM_THREADS=2"),
        (None, 1, {"OMP_NUM_THREADS": "3,1"}, 3, "OMP_NUM_THREADS=3"),
        (None, 4, {"OMP_NUM_THREADS": "90"}, 4, "16 usable cores, 4 ranks"),
        (None, 1, {"OMP_NUM_THREADS": "", "SLURM_CPUS_PER_TASK": "many"}, 16, "16 usable cores"),
        (40, 2, {"OMP_NUM_THREADS": "2", "SLURM_CPUS_PER_TASK": "3"}, 40, "trainer.threads"),
    ],
)
def test_a_rank_has_its_share_of_them_or_what_it_was_given(
    tmp_path: Path, wanted: int | None, ranks: int, environment: dict[str, str], most: int, reason: str
) -> None:
    found = threads_of(wanted, ranks, environment, root=tmp_path)
    assert (found.most, found.chosen, found.reason) == (most, wanted is not None, reason)


def test_work_that_is_small_gets_one_thread_unless_a_number_was_set() -> None:
    automatic, chosen = Threads(8, chosen=False), Threads(8, chosen=True)
    assert [automatic.for_work(work) for work in (0, LEAST_WORK - 1, LEAST_WORK)] == [1, 1, 8]
    assert chosen.for_work(0) == 8


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": str(SPINS)}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
    ids=str,
)
def test_waiting_threads_sleep_soon_unless_a_user_says_how_they_wait(
    before: dict[str, str], after: dict[str, str]
) -> None:
    wait_briefly(before)
    assert before == after


def test_the_line_says_how_many_and_why() -> None:
    assert str(Threads(2, False, "2 usable cores")) == "up to 2, by the work (2 usable cores)"
    assert str(Threads(1, False, "1 usable core")) == "1 (1 usable core)"
    assert str(Threads(4, True, "trainer.threads")) == "4 (trainer.threads)"
