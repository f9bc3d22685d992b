"""Gloo's process groups of a rank share one device, and with it the thread that waits for the network.

Torch gives every group a device of its own. Its thread looks a hundred times a second whether it is to end,
and Megatron makes dozens of groups on each rank: they take a percent or two of a core all the time, and wake
whatever else the core runs. What is sent and how is left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d as c10d


@contextmanager
def one_device() -> Iterator[None]:
    """Within it, new groups share a device, or one for each network interface of `GLOO_SOCKET_IFNAME`."""
    own: Any = getattr(c10d, "ProcessGroupGloo", None)  # a build of torch may be without gloo
    if own is None:
        yield
        return
    names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    devices = [own.create_device(interface=name) for name in names] or [own.create_default_device()]

    class OnOneDevice(own):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta, **given: Any) -> None:
            options = own._Options()
            options._devices, options._timeout = devices, timeout
            try:
                for name, value in given.items():  # `enable_reconfigure` from torch 2.14 on
                    setattr(options, name, value)
            except AttributeError:  # of a later torch: this group has a device of its own
                super().__init__(store, rank, size, timeout=timeout, **given)
            else:
                super().__init__(store, rank, size, options)

    vars(c10d)["ProcessGroupGloo"] = OnOneDevice
    try:
        yield
    finally:
        vars(c10d)["ProcessGroupGloo"] = own
