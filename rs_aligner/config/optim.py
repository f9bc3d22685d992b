"""`model.optim`: the optimizer and its learning rate, the same for every training.

Left out on purpose: what the rate comes to at each step (`rs_aligner/schedule.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rs_aligner.config.base import Beta, NotNegative, Positive, Section, Share, Size, problem


class SchedConfig(Section):
    """The learning rate over the planned optimizer steps of the run.

    What is null follows the run's length, so that no length switches training off; what is set has
    NeMo-Aligner's meaning.
    """

    name: Literal["CosineAnnealing", "constant"] = "CosineAnnealing"
    """`CosineAnnealing` falls from lr to min_lr along a cosine; `constant` stays at lr after the warm-up."""
    warmup_steps: Size | None = None
    """Optimizer steps over which the rate rises to lr; null for a twentieth of those planned.

    None in a run of one. With `constant_steps` set besides, the first step has rate 0, as in NeMo-Aligner.
    """
    constant_steps: Size | None = None
    """Optimizer steps at min_lr at the end of the run (CosineAnnealing only); null for none."""
    min_lr: NotNegative | None = None
    """Where the cosine ends (CosineAnnealing only); null for a tenth of lr."""


LORA_LR = 1e-4
"""The default where adapters are trained: about ten times that of all weights, whatever the rank.

Source: Schulman et al., "LoRA Without Regret" (2025).
"""


class OptimConfig(Section):
    """The optimizer. All names are Adam with decoupled weight decay."""

    name: Literal["distributed_fused_adam", "fused_adam", "adam", "adamw"] = "distributed_fused_adam"
    """`distributed_fused_adam` shards its state over the data-parallel ranks; the others do not."""
    lr: Positive = 1e-5
    """The highest learning rate; null is 1e-5, and 1e-4 for adapters (`model.peft.peft_scheme=lora`).

    It goes with the model's size: docs/defaults.md.
    """
    weight_decay: NotNegative = 0.1
    """Share of a weight taken off at each step, times the learning rate."""
    decay_norms_and_biases: bool = False
    """Whether weight decay takes norms and biases (tensors of one dimension), too, and not matrices only."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """How much of the running means of gradient and squared gradient stays at each step."""
    eps: Positive = 1e-8
    """Added to the root of the squared gradient's mean."""
    overlap_grad_sync: bool = False
    """Adds gradients up over the data-parallel ranks while the backward pass goes on, a bucket at a time."""
    offload_fraction: Share = 0.0
    """The share of the optimizer's states (12 bytes a parameter in bf16) that waits in the CPU's memory.

    On a GPU; a piece at a time comes in to be used, 24 bytes moved a parameter and optimizer step. No bit of
    what is learnt changes. Only with `distributed_fused_adam`.
    """
    sched: SchedConfig = SchedConfig()

    @property
    def distributed(self) -> bool:
        """Whether the optimizer's state is sharded over the data-parallel ranks."""
        return self.name == "distributed_fused_adam"

    def problems(self, key: str) -> Iterator[str]:
        """The cosine falls; pieces are those of the distributed optimizer."""
        sched = self.sched
        if self.offload_fraction and not self.distributed:
            name = f"needs {key}.name=distributed_fused_adam, else set it to 0"
            yield problem(f"{key}.offload_fraction", self.offload_fraction, name)
        if sched.name == "CosineAnnealing" and (sched.min_lr or 0) > self.lr:
            yield problem(f"{key}.sched.min_lr", sched.min_lr, f"should be at most {key}.lr = {self.lr}")
