"""The rotary positions that a `config.json` asks for, in the spellings of transformers 4 and 5.

A kind of scaling is a line of a table: the keys that it reads, and what they become. Left out on purpose: the
formulas (`rotary.py`), and kinds whose frequencies change with a sequence's length (`longrope`, and `dynamic`
beyond the model's positions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rs_aligner.config.layout import rope_of, rope_type_of
from rs_aligner.model.architecture import Rope
from rs_aligner.model.families.base import Config, Only

_NAMES = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_NOTES = {"original_max_position_embeddings", "finetuned"}  # found beside kinds that do not read them, too


def read_rope(path: Path, config: Config) -> Rope:
    """The rotary positions of a config.

    Where both spellings are there, `rope_scaling` counts, as in `transformers`.

    Raises:
        ValueError: a kind, a key or a number that is not supported; with what is.
    """
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise ValueError(f"{path}: {key} {config[key]!r} is not supported; an object or null is")
    rope, kind = rope_of(config), rope_type_of(config)
    Only("rope_type", tuple(_KINDS)).check(path, {"rope_type": kind})
    for where in (config, rope):
        Only("partial_rotary_factor", (None, 1.0)).check(path, where)
    keys, meaning = _KINDS[kind]
    for key in rope:
        if key not in {*_NAMES, *_NOTES, *keys}:
            choices = ", ".join(keys) or "none"
            raise ValueError(f"{path}: {key} of a {kind} rope_type is not supported; its keys are: {choices}")
    section = _Section(path, kind, {"rope_theta": config.get("rope_theta"), **rope})
    return Rope(theta=section.number("rope_theta", 10000.0, above=1), **meaning(section, config))


@dataclass(frozen=True, slots=True)
class _Section:
    """Keys of a rotary section."""

    path: Path
    kind: str
    rope: Config

    def number(self, key: str, absent: float | None = None, *, above: float = 0, least: float = 0) -> float:
        """A number above one and of at least another; `absent` where there is none."""
        value = self.rope.get(key)
        value = absent if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            if above < number < math.inf and number >= least:
                return number
        bound = f"{least:g} or more" if least > above else f"a number above {above:g}"
        self.refuse(f"{key} {value!r}", bound)

    def refuse(self, what: str, works: str) -> NoReturn:
        raise ValueError(f"{self.path}: {what} of a {self.kind} rope_type is not supported; {works} is")

    def ramp(
        self, config: Config, slow: str, fast: str, absent: tuple[float | None, float | None] = (None, None)
    ) -> dict[str, Any]:
        """What a kind has that scales by rotations within the original length, between two bounds."""
        key = "original_max_position_embeddings"
        original = config.get(key) or self.rope.get(key) or config["max_position_embeddings"]
        if not isinstance(original, int) or original < 1:
            self.refuse(f"{key} {original!r}", "a number of tokens")
        lower = self.number(slow, absent[0])
        return {
            "scaling": self.kind,
            "factor": self.number("factor", least=1),
            "original_positions": original,
            "slow": lower,
            "fast": self.number(fast, absent[1], above=lower),
        }


def _plain(section: _Section, config: Config) -> dict[str, Any]:
    return {}


def _dynamic(section: _Section, config: Config) -> dict[str, Any]:
    """Within its positions a model is as it was made; it is scaled in longer sequences only."""
    section.number("factor", least=1)
    return {}


def _linear(section: _Section, config: Config) -> dict[str, Any]:
    return {"scaling": "linear", "factor": section.number("factor", least=1)}


def _llama3(section: _Section, config: Config) -> dict[str, Any]:
    return section.ramp(config, "low_freq_factor", "high_freq_factor")


def _yarn(section: _Section, config: Config) -> dict[str, Any]:
    found = section.ramp(config, "beta_slow", "beta_fast", (1.0, 32.0))
    Only("truncate", (True, False), absent=True).check(section.path, section.rope)
    inferred = _attention_factor(section, found["factor"])
    return {
        **found,
        "whole": section.rope.get("truncate", True),
        "attention_factor": section.number("attention_factor", inferred),
    }


def _attention_factor(section: _Section, factor: float) -> float:
    """What cosines and sines are multiplied by, where a config does not say.

    Source: Peng et al., "YaRN" (2023), arXiv 2309.00071, the square root of 1/t there. With `mscale` and
    `mscale_all_dim`, what DeepSeek-V2 (2024) made of it: the first's factor over the second's.
    """
    scales = [section.number(key, 1.0) for key in ("mscale", "mscale_all_dim") if section.rope.get(key)]
    logarithm = 0.1 * math.log(factor)
    if len(scales) < 2:
        return logarithm + 1
    return (scales[0] * logarithm + 1) / (scales[1] * logarithm + 1)


_KINDS: dict[str, tuple[tuple[str, ...], Callable[[_Section, Config], dict[str, Any]]]] = {
    "default": ((), _plain),
    "linear": (("factor",), _linear),
    "dynamic": (("factor",), _dynamic),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), _llama3),
    "yarn": (
        ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        _yarn,
    ),
}
