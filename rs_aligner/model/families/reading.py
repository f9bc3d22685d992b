"""How the `config.json` of a relative of Llama is read: a table for each, `Reading`.

Left out on purpose: rotary positions (`rope.py`), windows (`kinds.py`), experts (`mixture.py`), and what
becomes of it (`llama_like.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rs_aligner.config.layout import positions_of
from rs_aligner.model.architecture import (
    EXPERTS,
    NO_POSITIONS,
    PART_TURNED,
    RESIDUAL_SCALE,
    SCORE_CAP,
    WINDOW,
    Architecture,
    Kind,
    Rope,
    Scales,
)
from rs_aligner.model.families.base import Config, Only, has_value_head
from rs_aligner.model.families.kinds import LAYER_TYPES, Which, Windows, read_kinds
from rs_aligner.model.families.mixture import Mixture
from rs_aligner.model.families.rope import KINDS, read_rope

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How a relative's `config.json` is read.

    Attributes:
        name: its `model_type`.
        only: what is supported, besides what is so for all.
        features: what its layers have beyond a Llama's.
        switches: what they have where a key of the config is true.
        absent: what keys mean that are not there, where that is not what it means for all.
        windows: which layers see a window only.
        no_positions: which layers turn nothing.
        scales: what the model multiplies by.
        act: the key of the activation, and its name.
        ropes: the kinds of rotary scaling that it has.
        by_kind: the config as layers of a kind (a name of `layer_types`) read it, where they have other
            rotary positions.
        in_part: whether it has heads that are turned in part.
        mixture: what is in the place of an MLP, if it has experts.
    """

    name: str
    only: tuple[Only, ...] = ()
    features: frozenset[str] = frozenset()
    switches: Mapping[str, frozenset[str]] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    windows: Windows | None = None
    no_positions: Which | None = None
    scales: Callable[[Path, Config], Scales] | None = None
    act: tuple[str, str] = ("hidden_act", "silu")
    ropes: tuple[str, ...] = KINDS
    by_kind: Callable[[Config, str], Config] | None = None
    in_part: bool = False
    mixture: Mixture | None = None

    def __call__(self, path: Path, given: Config) -> Architecture:
        """The architecture of a config; as `Family.read`."""
        config = {**self.absent, **given}
        if missing := [key for key in REQUIRED if not isinstance(config.get(key), int)]:
            raise ValueError(f"{path}: {', '.join(missing)} must be set to a whole number")
        Only("quantization_config", (None,)).check(path, config)
        rope, local = self._ropes(path, config)
        of_all = (Only(self.act[0], (self.act[1],), absent=self.act[1]),)
        for one in (*of_all, *self.only, *(Only(key, (True, False), absent=False) for key in self.switches)):
            one.check(path, config)
        kinds = self._kinds(path, config, local)
        scales = Scales() if self.scales is None else self.scales(path, config)
        switched = [more for key, more in self.switches.items() if config.get(key)]
        heads, positions = config["num_attention_heads"], positions_of(config)
        assert positions is not None
        if positions < 1:
            raise ValueError(f"{path}: max_position_embeddings must be 1 or more")
        value_head = has_value_head(path, config)
        return Architecture(
            family=self.name,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate_size=config["intermediate_size" if self.mixture is None else self.mixture.size],
            max_positions=positions,
            norm_eps=config.get("rms_norm_eps", 1e-6),
            rope=rope,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)) and not value_head,
            features=self.features.union(
                *switched, _told(kinds, scales, rope), () if self.mixture is None else (EXPERTS,)
            ),
            kinds=kinds,
            scales=scales,
            value_head=value_head,
            activation=self.act[1],
            experts=None if self.mixture is None else self.mixture.read(path, config),
        )

    def _ropes(self, path: Path, config: Config) -> tuple[Rope, Rope | None]:
        """The model's rotary positions, and those of layers with a window where they have others."""
        if self.by_kind is None:
            return read_rope(path, config, self.ropes, in_part=self.in_part), None
        full, local = (read_rope(path, self.by_kind(config, kind), self.ropes) for kind in LAYER_TYPES)
        return full, local

    def _kinds(self, path: Path, config: Config, local: Rope | None) -> tuple[Kind, ...]:
        kinds, still = read_kinds(path, config, self.windows, local), self.no_positions
        layers = range(config["num_hidden_layers"])
        others: dict[int, dict[str, Any]] = {
            layer: {"rope": NO_POSITIONS} for layer in layers if still is not None and still(config, layer)
        }
        for layer in () if self.mixture is None else self.mixture.dense(path, config):
            others.setdefault(layer, {})["mlp"] = config["intermediate_size"]
        if not others:
            return kinds
        kinds = kinds or (Kind(),) * len(layers)
        return tuple(replace(kind, **others.get(layer, {})) for layer, kind in enumerate(kinds))


def _told(kinds: tuple[Kind, ...], scales: Scales, rope: Rope) -> set[str]:
    """The features that an engine has to know for these."""
    found = {
        WINDOW: any(kind.window is not None for kind in kinds),
        RESIDUAL_SCALE: scales.residual != 1,
        SCORE_CAP: scales.score_cap is not None,
        PART_TURNED: rope.turned is not None,
    }
    return {feature for feature, has in found.items() if has}
