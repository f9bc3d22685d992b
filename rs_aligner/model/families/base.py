"""What a model family is: tables and a few functions, by which all else reads, builds, saves and decodes it.

Left out on purpose: torch and Megatron, which a family imports when a model is built, so that a folder of no
use is told before anything slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.layouts import Layout

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import ModuleSpec

Config = Mapping[str, Any]
"""What a `config.json` says."""

SCORE = "score.weight"
"""The value head of a reward model, as `transformers` names it in every family."""


@dataclass(frozen=True, slots=True)
class Part:
    """A Megatron parameter: the names and shapes of the tensors that it is made of, and how it is."""

    tensors: Mapping[str, tuple[int, ...]]
    layout: Layout


Parts = dict[str, Part]
"""Parts by the name of the Megatron parameter."""


@dataclass(frozen=True, slots=True)
class Only:
    """A key of `config.json` of which some values are supported.

    `absent` is what it means where it is not there.
    """

    key: str
    allowed: tuple[Any, ...]
    absent: Any = None

    def check(self, path: Path, config: Config) -> None:
        """See to it that a config says nothing else.

        Raises:
            ValueError: it does; with the value and what would work.
        """
        value = config.get(self.key, self.absent)
        if value not in self.allowed:
            choices = " or ".join(repr(choice) for choice in self.allowed)
            raise ValueError(f"{path}: {self.key} {value!r} is not supported; {choices} is")


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one `model_type`.

    Attributes:
        name: the `model_type` of a `config.json`.
        classes: what the names of its classes in `transformers` begin with.
        read: the architecture of a config (with the path of its file, for messages); raises `ValueError` for
            whatever it asks for that is not supported.
        layer: the parts of a layer, of the architecture as that layer has it (`Architecture.at`): Megatron's
            names behind `decoder.layers.N.`, tensors' names behind `layers`.
        outside: the parts that are no layer's, the output layer or the value head among them.
        megatron: what of Megatron's `TransformerConfig` the architecture decides.
        spec: Megatron's layer, of an architecture as `layer` has it.
        final_norm: the module behind the last layer.
        gpt: what of Megatron's `GPTModel` it decides: positions.
        trunk: what tensors' names begin with, but those of heads.
        layers: what those of layer `{}` begin with.
        embedding, head: the embedding and the output layer.
        harmless: what the names of tensors end like that may be there and are not read: buffers that follow
            from the config.
        has_classifier: whether `transformers` has a classifier of the family, which a reward model is.
    """

    name: str
    classes: str
    read: Callable[[Path, Config], Architecture]
    layer: Callable[[Architecture], Parts]
    outside: Callable[[Architecture], Parts]
    megatron: Callable[[Architecture], dict[str, Any]]
    spec: Callable[[Architecture], ModuleSpec]
    final_norm: Callable[[], type[torch.nn.Module]]
    gpt: Callable[[Architecture], dict[str, Any]]
    trunk: str = "model."
    layers: str = "model.layers.{}."
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    harmless: str = r"rotary_emb\.inv_freq"
    has_classifier: bool = True


def positive(path: Path, config: Config, key: str, absent: float) -> float:
    """A number of a config that is above 0; `absent` where it is not there.

    Raises:
        ValueError: it is none, or not above 0.
    """
    value = config.get(key, absent)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{path}: {key} {value!r} is not supported; a number above 0 is")
    return float(value)


def has_value_head(path: Path, config: Config) -> bool:
    """Whether a config is that of a reward model.

    Raises:
        ValueError: it is that of a classifier of several labels.
    """
    if not any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return False
    labels = config.get("num_labels") or len(config.get("id2label") or ("LABEL_0", "LABEL_1"))
    if labels != 1:
        raise ValueError(f"{path}: a classifier of {labels} labels is no reward model; one with 1 label is")
    return True
