"""`model.peft`: LoRA, by NeMo-Aligner's keys, with those of `peft` where it has none.

Left out on purpose: other schemes (p-tuning, IA3), and dropout in adapters, with which loss and gradient
would change with the layout. Keys of what cannot be done are in `upstream.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rs_aligner.config.base import Count, Positive, Section, Share, Text, Texts, problem
from rs_aligner.peft_folder import read_adapter_settings

RANK = 32
EVERYWHERE = ("all",)


def _scheme(value: Any) -> Any:
    return "none" if value is None or value is False else value


Scheme = Annotated[
    Literal["none", "lora"], BeforeValidator(_scheme), Field(title="`none`, `lora`", validate_default=True)
]
Init = Literal["xavier", "normal", "kaiming", "zero"]


class LoraTuningConfig(Section):
    """What the adapters are (Hu et al., 2021): a linear layer's `W x` becomes `W x + scale B (A x)`.

    What is null is the folder's where `model.peft.restore_from_path` names one.
    """

    target_modules: Texts | None = None
    """The layers that have adapters; null is `[all]`.

    `attention_qkv`, `attention_dense`, `mlp_fc1`, `mlp_fc2`, `attention` (the first two), `mlp` (the other
    two), `all`; or single matrices as `peft` names them, such as `[q_proj, v_proj]`.
    """
    adapter_dim: Count | None = None
    """The rank r of each adapted matrix; null is 32. Queries, keys and values have r each, as in `peft`."""
    alpha: Positive | None = None
    """What is learnt counts alpha / r times; null is r, and so once."""
    use_rslora: bool | None = None
    """Whether it counts alpha / sqrt(r) times (Kalajdzievski, 2023), so that rates carry over to large r."""
    adapter_dropout: Share = 0.0
    """Only 0: with dropout loss and gradient would depend on micro-batches and layout."""
    column_init_method: Init = "xavier"
    """How A begins: `xavier` and `normal` (0.2) as in NeMo, `kaiming` as in `peft`, or `zero`."""
    row_init_method: Init = "zero"
    """How B begins. With zero the training begins at the base model itself."""

    def refusals(self, key: str) -> Iterator[str]:
        """What keeps adapters from being trained so: asked for where there are some."""
        if self.adapter_dropout:
            only = "should be 0: with dropout loss and gradient would depend on micro-batches and layout"
            yield problem(f"{key}.adapter_dropout", self.adapter_dropout, only)
        if self.column_init_method == self.row_init_method == "zero":
            stuck = "should not be zero where column_init_method is: neither would ever get a gradient"
            yield problem(f"{key}.row_init_method", self.row_init_method, stuck)
        if self.target_modules is not None and not self.target_modules:
            yield problem(f"{key}.target_modules", [], "should name layers, e.g. [all]")


class AdapterConfig(Section):
    """An adapter to be put onto the model."""

    restore_from_path: Text | None = None
    """An adapter of the model to begin with: a folder as `peft` writes it. Null: none."""

    def problems(self, key: str) -> Iterator[str]:
        """It is one that can be read."""
        if self.restore_from_path is None:
            return
        try:
            read_adapter_settings(self.restore_from_path)
        except ValueError as error:
            yield problem(f"{key}.restore_from_path", self.restore_from_path, str(error))


class PeftConfig(AdapterConfig):
    """Which weights are trained: all of them, or small adapters beside them (LoRA)."""

    peft_scheme: Scheme = "none"
    """`lora` trains adapters only: the model stays as it is, without gradients and optimizer states."""
    export: Literal["merged", "adapter"] = "merged"
    """What `final/` is: a whole model, or an adapter folder that `peft` loads onto the model started from."""
    lora_tuning: LoraTuningConfig = LoraTuningConfig()

    @property
    def is_lora(self) -> bool:
        """Whether adapters are trained, and nothing else of the model."""
        return self.peft_scheme == "lora"

    def problems(self, key: str) -> Iterator[str]:
        """An adapter folder is used, and says what the config says."""
        yield from super().problems(key)
        if not self.is_lora:
            if self.restore_from_path is not None:
                needs = f"needs {key}.peft_scheme=lora: an adapter is trained further as one"
                yield problem(f"{key}.restore_from_path", self.restore_from_path, needs)
            if self.export != "merged":
                yield problem(f"{key}.export", self.export, f"needs {key}.peft_scheme=lora")
            return
        yield from self.lora_tuning.refusals(f"{key}.lora_tuning")
        if self.restore_from_path is None:
            return
        try:
            found = read_adapter_settings(self.restore_from_path)
        except ValueError:
            return  # told above
        tuning = self.lora_tuning
        for name, value, stored in (
            ("adapter_dim", tuning.adapter_dim, found.rank),
            ("alpha", tuning.alpha, found.alpha),
            ("use_rslora", tuning.use_rslora, found.use_rslora),
        ):
            if value is not None and value != stored:
                where = f"{self.restore_from_path}/adapter_config.json"
                same = f"should be null or {json.dumps(stored)}, as in {where}"
                yield problem(f"{key}.lora_tuning.{name}", value, same)
