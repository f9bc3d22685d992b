"""Stand-ins for the Adams of Transformer Engine and Apex, which need a GPU: what a checkpoint sees of them.

Written after `transformer_engine/pytorch/optimizers/fused_adam.py` (2.x) and `apex/optimizers/fused_adam.py`:
names and types of states, where steps are counted, what a group must have, what loading does. Left out on
purpose: states in fewer bits, weights of its own, and speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core import optimizer as optimizers
from megatron.core.optimizer import distrib_optimizer

AVERAGES = ("exp_avg", "exp_avg_sq")


class ApexAdam(torch.optim.Optimizer):
    """Counts steps by group; its averages are float32, and there is nothing else among its states."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        assert adam_w_mode
        assert not capturable, "steps would be counted in a tensor"
        super().__init__(
            params,
            {"lr": lr, "bias_correction": True, "betas": betas, "eps": eps, "weight_decay": weight_decay},
        )

    def begin(self, parameter: torch.Tensor) -> None:
        for name in AVERAGES:
            self.state[parameter][name] = torch.zeros_like(parameter, dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group["step"] + 1 if "step" in group else 1
            assert type(group["step"]) is int, "the kernel takes an integer"
            assert group["bias_correction"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.begin(parameter)
                assert set(self.state[parameter]) == set(AVERAGES)
                self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        mean, square = (self.state[parameter][name] for name in AVERAGES)
        (beta1, beta2), step = group["betas"], group["step"]
        mean.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        change = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
        parameter.sub_(group["lr"] * (change + group["weight_decay"] * parameter))


class TransformerEngineAdam(ApexAdam):
    """Knows its states by name, when it is asked for them and when it loads; loading makes new ones."""

    def state_dict(self) -> dict[str, Any]:
        found = super().state_dict()
        for state in found["state"].values():
            for name in state:
                assert name in AVERAGES, f"no state of it is called {name}"
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in state_dict["state"]:
                self.state[parameter] = {}
                for name, value in state_dict["state"][number].items():
                    assert name in AVERAGES, f"no state of it is called {name}"
                    self.state[parameter][name] = value.float().clone()


INSTALLED = {"torch": None, "apex": ApexAdam, "te": TransformerEngineAdam}


def install(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let Megatron find it as it finds the real one, when it is imported."""
    adam = INSTALLED[name]
    patch.setattr(optimizers, "USING_PYTORCH_OPTIMIZER", adam is None)
    patch.setattr(distrib_optimizer, "HAVE_APEX_OR_TE", adam is not None)
    patch.setattr(distrib_optimizer, "USING_TE_OPTIMIZER", name == "te")
    patch.setattr(distrib_optimizer, "USING_APEX_OPTIMIZER", name == "apex")
    patch.setattr(optimizers, "Adam", adam or torch.optim.AdamW)
    patch.setattr(distrib_optimizer, "Adam", adam or torch.optim.Adam)
