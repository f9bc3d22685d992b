"""The rotary positions that a `config.json` asks for, in the spellings of transformers 4 and 5.

A kind of scaling is a line of a table: the keys that it reads, and what they become. Left out on purpose: the
formulas (`rotary.py`), and frequencies that change with a sequence's length: `dynamic` and `longrope` beyond
the positions that a model was first made for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rs_aligner.config.layout import rope_of, rope_type_of
from rs_aligner.model.architecture import Rope
from rs_aligner.model.families.base import Config, Only

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
"""The kinds of scaling that a Llama and most of its relatives have."""
_NAMES = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_NOTES = {"original_max_position_embeddings", "finetuned"}  # found beside kinds that do not read them, too


def read_rope(path: Path, config: Config, kinds: Collection[str] = KINDS, *, in_part: bool = False) -> Rope:
    """The rotary positions of a config.

    Where both spellings are there, `rope_scaling` counts, as in `transformers`.

    Args:
        path: of the config, for messages.
        config: with the size of a head where that is not its width over its heads.
        kinds: of scaling that the family has.
        in_part: whether it has heads that are turned in part.

    Raises:
        ValueError: a kind, a key or a number that is not supported; with what is.
    """
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, Mapping):
            raise ValueError(f"{path}: {key} {config[key]!r} is not supported; an object or null is")
    rope, kind = rope_of(config), rope_type_of(config)
    Only("rope_type", tuple(kinds)).check(path, {"rope_type": kind})
    turned = _turned(path, config, rope, in_part)
    keys, meaning = _KINDS[kind]
    for key in rope:
        if key not in {*_NAMES, *_NOTES, *keys}:
            choices = ", ".join(keys) or "none"
            raise ValueError(f"{path}: {key} of a {kind} rope_type is not supported; its keys are: {choices}")
    section = _Section(path, kind, {"rope_theta": config.get("rope_theta"), **rope})
    return Rope(
        theta=section.number("rope_theta", 10000.0, above=1), turned=turned, **meaning(section, config)
    )


def _turned(path: Path, config: Config, rope: Config, in_part: bool) -> int | None:
    """How many numbers of a head are turned; None for all."""
    key = "partial_rotary_factor"
    found = rope.get(key) if rope.get(key) is not None else config.get(key)
    if found is None or found == 1:
        return None
    if not in_part:
        Only(key, (None, 1.0)).check(path, {key: found})
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turned = int(dim * found) if isinstance(found, float) and 0 < found < 1 else 0
    if turned < 2 or turned % 2 or dim % 2:
        raise ValueError(
            f"{path}: {key} {found!r} is not supported; a share that makes pairs of a head's {dim} is"
        )
    return turned


def sections(bases: Mapping[str, tuple[str, float]]) -> Callable[[Config, str], Config]:
    """How a config is read by kinds of layers that have other angles.

    Since transformers 5 `rope_parameters` has a section for each kind; before, `rope_scaling` was of layers
    without a window only.

    Args:
        bases: the key of each kind's base before transformers 5, and what it is where it is not there.
    """

    def by_kind(config: Config, kind: str) -> Config:
        key, base = bases[kind]
        given = config.get("rope_parameters") or {}
        if any(one in given for one in bases):
            section = given.get(kind) or {}
        else:
            section = (config.get("rope_scaling") or {}) if kind == "full_attention" else {}
        theta = section.get("rope_theta") or config.get(key) or base
        return {**config, "rope_scaling": None, "rope_parameters": {**section, "rope_theta": theta}}

    return by_kind


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


def _longrope(section: _Section, config: Config) -> dict[str, Any]:
    """Ding et al., "LongRoPE" (2024), arXiv 2402.13753, for sequences within the original length.

    Beyond it all frequencies of a sequence are others (`long_factor`), so such sequences are refused.
    """
    original, positions = config.get("original_max_position_embeddings"), config["max_position_embeddings"]
    original = original or section.rope.get("original_max_position_embeddings")
    if type(original) is not int or original < 2:
        section.refuse(f"original_max_position_embeddings {original!r}", "a number of tokens")
    divisors = section.rope.get("short_factor")
    if not isinstance(divisors, list) or not all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < math.inf for one in divisors
    ):
        section.refuse(f"short_factor {divisors!r}", "a list of numbers above 0")
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    pairs = (_turned(section.path, config, section.rope, True) or dim) // 2
    if len(divisors) != pairs:
        section.refuse(f"a short_factor of {len(divisors)} numbers", f"one of {pairs}")
    larger = positions / original if section.rope.get("factor") is None else section.number("factor")
    inferred = math.sqrt(1 + math.log(larger) / math.log(original)) if larger > 1 else 1.0
    return {
        "divisors": tuple(map(float, divisors)),
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
    "longrope": (("factor", "attention_factor", "short_factor", "long_factor"), _longrope),
    "yarn": (
        ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        _yarn,
    ),
}
