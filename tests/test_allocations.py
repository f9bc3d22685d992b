"""Memory of tensors is counted whatever else a process has made: torch.compile keeps tensors without any."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.allocations import bytes_beside, live_tensors


class Sharded(torch.Tensor):
    """Answers nothing that a tensor is asked, as torch's own of this name."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} not supported")


def test_tensors_that_lie_nowhere_are_not_counted() -> None:
    before = live_tensors()
    with FakeTensorMode():
        fake = torch.empty(1000)
    meta, real = torch.empty(1000, device="meta"), torch.zeros(1000)
    functional, sharded = torch._to_functional_tensor(real), real.as_subclass(Sharded)
    assert type(sharded) is Sharded
    assert fake.nbytes == functional.nbytes == meta.nbytes == real.nbytes == 4000
    assert bytes_beside(before) == 4000
