"""The states of Adam inside Megatron's optimizers: begun, forgotten, and brought through a checkpoint.

Torch's Adam begins its states in its first step, and counts steps by parameter. Megatron's checkpoints expect
states that are there and one count for all. Left out on purpose: what is in a checkpoint (`checkpoint.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import optimizer as optimizers
from megatron.core.optimizer import MegatronOptimizer, distrib_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

AVERAGES = ("exp_avg", "exp_avg_sq")


def parts_of(optimizer: MegatronOptimizer) -> list[Any]:
    """Megatron's optimizers that one is made of; those without parameters are left out."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if getattr(part, "optimizer", None) is not None]


def torchs_adams(optimizer: MegatronOptimizer) -> list[Any]:
    """Those that have torch's Adam inside (and not Apex's or TE's)."""
    return [
        part
        for part in parts_of(optimizer)
        if isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW)
    ]


def use_torchs() -> None:
    """Let Megatron build torch's Adam from here on, and not one of Transformer Engine or Apex."""
    optimizers.USING_PYTORCH_OPTIMIZER = True
    distrib_optimizer.HAVE_APEX_OR_TE = False
    distrib_optimizer.USING_TE_OPTIMIZER = distrib_optimizer.USING_APEX_OPTIMIZER = False


def parameters_of(part: Any) -> list[torch.Tensor]:
    """What Adam steps."""
    return [one for group in part.optimizer.param_groups for one in group["params"]]


def begin(part: Any, parameters: Iterable[torch.Tensor] | None = None) -> None:
    """Give Adam the state that it would give itself in its first step; Megatron cannot save without.

    Args:
        part: one of Megatron's optimizers, with torch's Adam inside.
        parameters: of it; None for all.
    """
    for parameter in parameters_of(part) if parameters is None else parameters:
        if not part.optimizer.state[parameter]:
            part.optimizer.state[parameter] = {
                "step": torch.zeros(()),
                **{name: torch.zeros_like(parameter) for name in AVERAGES},
            }


def forget(part: Any) -> None:
    """Make Adam's states as new, of the parameters that are in its groups."""
    for parameter in parameters_of(part):
        state = part.optimizer.state.get(parameter, {})
        for name in ("step", *AVERAGES):
            if name in state:
                state[name].zero_()


def add_step_of_zero(state: Any) -> None:
    """Megatron leaves Adam's common step out of a checkpoint where it is 0, and misses it when it loads."""
    if not isinstance(state, dict):
        return
    if "state" in state and "param_groups" in state:
        state["state"].setdefault("common_step", torch.zeros(()))
        return
    for part in state.values():
        add_step_of_zero(part)


@contextmanager
def bridged(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Bridge three gaps between Megatron's distributed optimizer and torch's Adam while loading.

    Megatron reads Adam's `step` before there is any state; expects it among each parameter's loaded
    tensors, where its format does not put it (it comes with the parameter groups); and gives all
    parameters one and the same `step` tensor, which each of them would then count up.
    """
    parts = [part for part in torchs_adams(optimizer) if isinstance(part, DistributedOptimizer)]
    writes = [part._set_main_param_and_optimizer_states for part in parts]
    for part, write in zip(parts, writes, strict=True):
        begin(part)

        def with_step(
            parameter: Any, tensors: dict[str, Any], part: DistributedOptimizer = part, write: Any = write
        ) -> None:
            main = part.model_param_group_index_map[parameter]
            step = part.optimizer.state[part.optimizer.param_groups[main[0]]["params"][main[1]]].get("step")
            known = {} if step is None else {"step": step}
            write(parameter, {**known, **tensors})

        part._set_main_param_and_optimizer_states = with_step
    try:
        yield
    finally:
        for part, write in zip(parts, writes, strict=True):
            part._set_main_param_and_optimizer_states = write
            for state in part.optimizer.state.values():
                state["step"] = state["step"].clone()
