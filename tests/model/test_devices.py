"""Which device a rank takes, and that its process group is told; with stand-ins for CUDA."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rs_aligner.model import runtime

pytestmark = pytest.mark.timeout(60)


class Joined(Exception):
    """Raised where the process group would be joined, with what it is told."""


def join(monkeypatch: pytest.MonkeyPatch, shown: int, environment: dict[str, str]) -> tuple[Any, ...]:
    """Start on GPUs with this many visible: the backend, the group's device, and the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)

    def init_process_group(backend: str, **how: Any) -> None:
        raise Joined(backend, how.get("device_id"), *current)

    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    accelerator = "gpu" if shown else "cpu"
    with pytest.raises(Joined) as joined, runtime.start(accelerator=accelerator, store=dist.HashStore()):
        pass
    return joined.value.args


SLURM = {"SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}
TORCHRUN = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}


@pytest.mark.parametrize("launcher", [SLURM, TORCHRUN])
@pytest.mark.parametrize(("shown", "taken"), [(4, 2), (1, 0)])
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_that_it_sees(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str], shown: int, taken: int
) -> None:
    gpu = torch.device("cuda", taken)
    assert join(monkeypatch, shown, dict(launcher)) == ("nccl", gpu, gpu)


def test_a_run_on_a_cpu_has_no_device_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join(monkeypatch, 0, dict(SLURM)) == ("gloo", None)


def test_more_ranks_than_gpus_are_refused_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"rank 2 of this node has no GPU.* 2 are visible: trainer\.devices=2"
    ):
        join(monkeypatch, 2, dict(TORCHRUN))
