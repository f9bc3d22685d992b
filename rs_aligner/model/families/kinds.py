"""What layers of one model differ in, as a `config.json` says it: which of them see a window only.

A family says which do where the config's `layer_types` does not. Left out on purpose: masks (`attending.py`),
and windows of another size in each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rs_aligner.config.layout import positions_of
from rs_aligner.model.architecture import Kind, Rope
from rs_aligner.model.families.base import Config, Only

Which = Callable[[Config, int], bool]
"""Whether a layer is one of those."""
LAYER_TYPES = ("full_attention", "sliding_attention")


class Windows(NamedTuple):
    """Which layers of a family see the tokens of a window only.

    Attributes:
        which: where `layer_types` does not say.
        switch: the key without which none does; None where there is no such key.
    """

    which: Which
    switch: str | None = None


def every_layer(config: Config, layer: int) -> bool:
    """All of them, as in Mistral 7B (2023)."""
    return True


def later_layers(config: Config, layer: int) -> bool:
    """Those behind the first `max_window_layers`, as in Qwen2 (2024)."""
    return bool(layer >= config["max_window_layers"])


def alternate_layers(config: Config, layer: int) -> bool:
    """The first, the third and so on, as in Gemma 2 (2024)."""
    return layer % 2 == 0


def but_every_nth(config: Config, layer: int) -> bool:
    """All but every `sliding_window_pattern`th, as in Gemma 3 (2025)."""
    return bool((layer + 1) % config["sliding_window_pattern"])


def read_kinds(
    path: Path, config: Config, windows: Windows | None, local: Rope | None = None
) -> tuple[Kind, ...]:
    """What each layer is; nothing where all are alike, and no window is shorter than the longest sequence.

    Args:
        path: of the config, for messages.
        config: with the number of its layers.
        windows: of the family; None where it has none.
        local: the rotary positions of layers with a window, where they have others.

    Raises:
        ValueError: a window, or kinds of layers, that are not supported.
    """
    if windows is None:
        Only("sliding_window", (None,)).check(path, config)
        return ()
    window, switch = config.get("sliding_window"), windows.switch
    if not (window is None or (type(window) is int and window > 0)):
        raise ValueError(f"{path}: sliding_window {window!r} is not supported; null or a number of tokens is")
    if switch is not None:
        Only(switch, (True, False), absent=False).check(path, config)
    has = _has_window(path, config, windows.which)
    if window is not None and window >= (positions_of(config) or 0):
        window = None  # which hides nothing
    if (switch is not None and not config.get(switch)) or (window is None and local is None) or not any(has):
        return ()
    return tuple(Kind(window, local) if one else Kind() for one in has)


def _has_window(path: Path, config: Config, which: Which) -> list[bool]:
    layers = config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is None:
        return [which(config, layer) for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(one not in LAYER_TYPES for one in types):
        raise ValueError(
            f"{path}: layer_types {types!r} is not supported; a list of {layers}, each one of "
            f"{' and '.join(LAYER_TYPES)}, is"
        )
    return [one == LAYER_TYPES[1] for one in types]
