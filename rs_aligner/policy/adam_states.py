"""The states of Adam inside Megatron's optimizers: begun, forgotten, and brought through a checkpoint.

Megatron takes the Adam of Transformer Engine where it is installed, else Apex's, else torch's. Their averages
are the same tensors under the same names. Torch's counts steps by parameter, among the states; the fused ones
by group, as a Python integer, and take nothing else among the states than averages. Their groups have
settings of their own. So what is loaded is put into the form of the Adam that is there; the settings of a
group are the config's anyway. The fused ones need a GPU: tests hold this with stand-ins, written after the
sources of both, and nobody has run it with the real ones. Left out on purpose: what is in a checkpoint
(`checkpoint.py`), and averages in fewer bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core import optimizer as optimizers
from megatron.core.optimizer import MegatronOptimizer, distrib_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import param_group_identifier_keys

_SHARDED = ("param_state", "param_state_sharding_type")  # what Megatron adds to its own `state_dict`
AVERAGES = ("exp_avg", "exp_avg_sq")
_OF_NONE = "of no parameter"


def parts_of(optimizer: MegatronOptimizer) -> list[Any]:
    """Megatron's optimizers that one is made of; those without parameters are left out."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if getattr(part, "optimizer", None) is not None]


def torchs_adams(optimizer: MegatronOptimizer) -> list[Any]:
    """Those that have torch's Adam inside (and not Apex's or TE's)."""
    return [part for part in parts_of(optimizer) if _is_torchs(part)]


def _is_torchs(part: Any) -> bool:
    return isinstance(part.optimizer, torch.optim.Adam | torch.optim.AdamW)


def whose(optimizer: MegatronOptimizer) -> str:
    """The package that its Adam is of."""
    return next((type(part.optimizer).__module__.partition(".")[0] for part in parts_of(optimizer)), "nobody")


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
        part: one of Megatron's optimizers.
        parameters: of it; None for all.
    """
    if not _is_torchs(part):
        part.init_state_fn(part.optimizer, part.config)
        return
    for parameter in parameters_of(part) if parameters is None else parameters:
        if not part.optimizer.state[parameter]:
            part.optimizer.state[parameter] = {
                "step": torch.zeros(()),
                **{name: torch.zeros_like(parameter) for name in AVERAGES},
            }
    if parameters is None and not part.optimizer.state and isinstance(part, DistributedOptimizer):
        # Of a stage whose layers have no experts theirs is empty, and Megatron wants to know its steps.
        part.optimizer.state[_OF_NONE] = {"step": torch.zeros(())}


def forget(part: Any) -> None:
    """Make Adam's states as new, of the parameters that are in its groups."""
    for parameter in parameters_of(part):
        state = part.optimizer.state.get(parameter, {})
        for name in ("step", *AVERAGES):
            if name in state:
                state[name].zero_()


def adopt(loaded: Any, optimizer: MegatronOptimizer) -> None:
    """Put what a checkpoint has of an optimizer into the form of the Adams that are there, in place.

    Args:
        loaded: as `load_state_dict` of the optimizer takes it.
        optimizer: which will take it.
    """
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    parts = (loaded, *(loaded.get(number, {}) for number in range(2)))
    saved = [part for part in parts if not {"optimizer", "param_groups"}.isdisjoint(part)]
    # The same for all; but the first rank, which tells, may have no experts, and then none of their steps.
    steps = max(_steps_of(part.get("optimizer", part)) for part in saved)
    if len(chained) != len(saved):
        _regroup(loaded, chained, saved[0], steps)
    for number, part in enumerate(chained):
        if getattr(part, "optimizer", None) is not None:
            _adopt(loaded[number] if len(chained) > 1 else loaded, part, steps)


def _regroup(loaded: dict[Any, Any], chained: Sequence[Any], saved: Mapping[str, Any], steps: int) -> None:
    """Put what is not cut into shards where these optimizers look for it, in place.

    Experts that replicas share out have an optimizer of their own, and others have not. Tensors are where
    they are wanted already, and of all else only the count of steps is not the config's.
    """
    parts = {}
    for number, part in enumerate(chained):
        own = part.state_dict()
        for group in own["optimizer"]["param_groups"]:
            group["step"] = steps
        found = {**saved, **(loaded.get(number, {}) if len(chained) > 1 else loaded)}
        kept = {name: found[name] for name in _SHARDED if name in found}  # nothing where it has no parameters
        parts[number] = {**own, **kept}
    loaded.clear()
    loaded.update(parts if len(chained) > 1 else parts[0])


def _adopt(loaded: dict[str, Any], part: Any, step: int) -> None:
    inner, is_shared_out = loaded.get("optimizer", loaded), isinstance(part, DistributedOptimizer)
    own = {_name(group): group for group in part.optimizer.param_groups}
    for group in inner["param_groups"]:
        settings = own.get(_name(group), group)  # Megatron says what is wrong with a group that is not there
        kept = {key: value for key, value in settings.items() if key not in ("params", "step")}
        kept |= {key: group[key] for key in ("params",) if key in group}
        group.clear()
        group.update(kept)
        if not _is_torchs(part):
            group["step"] = step
        elif is_shared_out:
            group["step"] = float(step)
    if not is_shared_out:
        inner["state"].pop("common_step", None)
        if _is_torchs(part):
            inner["state"]["common_step"] = torch.tensor(float(step))


def _name(group: dict[str, Any]) -> tuple[Any, ...]:
    """By what Megatron knows a group."""
    return tuple(group.get(key) for key in param_group_identifier_keys)


def _steps_of(inner: dict[str, Any]) -> int:
    """How many steps Adam has made, wherever it is counted; Megatron leaves out what is 0."""
    counts = [inner.get("state", {}).get("common_step"), *(g.get("step") for g in inner["param_groups"])]
    return max((int(count) for count in counts if count is not None), default=0)


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
