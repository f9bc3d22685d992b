"""A rank has one thread that waits for its groups' network, however many groups there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from rs_aligner.model import gloo, runtime

LISTENS = "gloo_tcp_loop"


def threads() -> dict[str, str]:
    """Id and name of each thread; one of an earlier test may be about to end."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[task.name] = (task / "comm").read_text().strip()
    return found


@pytest.fixture(scope="module")
def earlier() -> Iterator[set[str]]:
    """The threads that there were before the run had its groups."""
    before = set(threads())
    with runtime.start(accelerator="cpu", timeout_minutes=1):
        yield before


def test_all_groups_of_a_rank_share_a_thread(earlier: set[str]) -> None:
    groups = len(distributed_c10d._world.pg_map)
    assert groups > 10  # Megatron's
    new = {task: name for task, name in threads().items() if task not in earlier}
    if LISTENS in new.values():
        assert list(new.values()).count(LISTENS) == 1
    else:  # a torch that does not name them, as 2.10: a device for each would make three a group
        assert groups < len(new) < 3 * groups


@pytest.mark.usefixtures("earlier")
def test_groups_on_one_device_do_not_take_each_others_messages() -> None:
    groups = [dist.new_group([0], backend="gloo") for _ in range(3)]
    for number, group in enumerate(groups):
        tensor = torch.full((4,), float(number))
        dist.all_reduce(tensor, group=group)
        assert tensor.tolist() == [number] * 4
        dist.destroy_process_group(group)


class Later:
    """Gloo's groups as torch 2.14 has them, with a setting, and perhaps one more that options lack."""

    class _Options:
        __slots__ = ("_devices", "_timeout", "enable_reconfigure")

    def __init__(self, *given: Any, **named: Any) -> None:
        self.given, self.named = given, named

    @staticmethod
    def create_default_device() -> str:
        return "a device"


def test_what_a_later_torch_sets_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed_c10d, "ProcessGroupGloo", Later)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with gloo.one_device():
        made: Any = distributed_c10d.ProcessGroupGloo
        shared = made("store", 1, 2, timeout="an hour", enable_reconfigure=True)
        alone = made("store", 1, 2, timeout="an hour", enable_reconfigure=True, newest=7)
    *where, options = shared.given
    assert (where, shared.named) == (["store", 1, 2], {})
    assert (options._devices, options._timeout, options.enable_reconfigure) == (["a device"], "an hour", True)
    assert alone.given == ("store", 1, 2)
    assert alone.named == {"timeout": "an hour", "enable_reconfigure": True, "newest": 7}


def test_torch_is_as_it_was_behind_it() -> None:
    """Others in this process get groups as torch makes them."""
    before = distributed_c10d.ProcessGroupGloo
    with gloo.one_device():
        assert distributed_c10d.ProcessGroupGloo is not before
    assert distributed_c10d.ProcessGroupGloo is before
