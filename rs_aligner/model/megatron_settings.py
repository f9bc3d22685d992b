"""What another Megatron program's checkpoint says of its model, held against the `config.json` beside it.

Shapes do not tell how many heads there are, the base of the rotation or a norm's epsilon, and with another
one a model would be another without a word. Programs write such settings down: Megatron-LM its arguments
(`common.pt`), Megatron Bridge `run_config.yaml`, NeMo 1 `model_config.yaml`, NeMo 2 `context/model.yaml`.
Each that is known here and is there has to be what `config.json` says; a checkpoint without settings is
taken at its shapes, and the log says so. Left out on purpose: making a `config.json` of them, which would
need a default for each that is absent.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rs_aligner.model.architecture import Architecture
from rs_aligner.model.families.registry import family_of
from rs_aligner.model.inert_pickle import Inert
from rs_aligner.model.megatron_shards import Shards

_logger = logging.getLogger("rs_aligner")
Settings = Mapping[str, Any]
_YAML = {"run_config.yaml": "model", "context/model.yaml": "config", "model_config.yaml": None}
"""The files with settings, and the section of each that has the model's."""


class _Setting(NamedTuple):
    """Names that programs have for a setting, what it has to be, and whether a value of theirs is that."""

    names: tuple[str, ...]
    wanted: Any
    fits: Callable[[Any, Any], bool]


class _Plain(yaml.SafeLoader):
    """Reads plain data, and nothing in the place of what would be made by a call."""


_Plain.add_multi_constructor("", lambda loader, tag, node: None)


def check_settings(folder: Path, shards: Shards, arch: Architecture) -> None:
    """See to it that a checkpoint is of the model that `config.json` describes.

    Args:
        folder: with the `config.json`.
        shards: the checkpoint.
        arch: what `config.json` says.

    Raises:
        ValueError: a setting differs; named with both values.
    """
    file, settings = _settings(folder, shards)
    if settings is None:
        _logger.info("%s says nothing of its model: config.json is taken at its word", shards.place)
        return
    settings = _groups({name: _plain(value) for name, value in settings.items()})
    for names, wanted, fits in _wanted(arch):
        for name in names:
            if settings.get(name) is not None and not fits(settings[name], wanted):
                raise ValueError(
                    f"{shards.place}: its {file} says {name}: {settings[name]!r}, which does not fit "
                    f"{folder}/config.json ({wanted!r} there). Take the config.json of the model that this "
                    "checkpoint is of"
                )


def _settings(folder: Path, shards: Shards) -> tuple[str, Settings | None]:
    """The file with the settings, and what it says."""
    for name, section in _YAML.items():
        if (content := _content(folder, shards, name)) is None:
            continue
        try:
            found = yaml.load(content, Loader=_Plain)
            return name, dict(found[section] if section else found)
        except (yaml.YAMLError, KeyError, TypeError, ValueError):
            raise ValueError(f"{shards.place}: {name} cannot be read: fetch it again") from None
    common = shards.common()
    args = common.get("args") if isinstance(common, dict) else None
    return "args", vars(args) if isinstance(args, Inert) else None


def _content(folder: Path, shards: Shards, name: str) -> bytes | None:
    """A file among the shards, or beside them."""
    if name in shards.files:
        return shards.files[name].read()
    found = [one for one in (folder / name, shards.place.parent / name) if one.is_file()]
    return found[0].read_bytes() if found else None


def _plain(value: Any) -> Any:
    """A value, or that of a member of an enumeration."""
    return value.args[0] if isinstance(value, Inert) and len(value.args) == 1 else value


def _same(found: Any, wanted: Any) -> bool:
    return bool(found == wanted)


def _close(found: Any, wanted: Any) -> bool:
    return isinstance(found, int | float) and math.isclose(found, wanted, rel_tol=1e-3)


def _none(found: Any, wanted: Any) -> bool:
    return not found


def _word(found: Any, wanted: Any) -> bool:
    """Whether a function or a kind is the wanted one, by the last word of its name."""
    name = found.get("_target_", "") if isinstance(found, Mapping) else found
    return str(name).lower().rpartition(".")[2] == str(wanted).lower()


def _wanted(arch: Architecture) -> Iterator[_Setting]:
    """What the settings of a checkpoint of this architecture are."""
    megatron, rope = family_of(arch).megatron(arch), arch.rope
    numbers = {
        "num_layers": arch.num_layers,
        "hidden_size": arch.hidden_size,
        "ffn_hidden_size": arch.intermediate_size,
        "num_attention_heads": arch.num_heads,
        "num_query_groups": arch.num_kv_heads,
        "kv_channels": arch.head_dim,
    }
    yield from (_Setting((name,), number, _same) for name, number in numbers.items())
    yield _Setting(("layernorm_epsilon", "norm_epsilon"), arch.norm_eps, _close)
    yield _Setting(("normalization",), megatron["normalization"], _word)
    yield _Setting(("swiglu", "gated_linear_unit"), True, _same)
    yield _Setting(("activation_func",), megatron["activation_func"].__name__, _word)
    yield _Setting(("activation",), ("swiglu", "fast-swiglu"), lambda found, wanted: found in wanted)
    kinds = ("rope", "yarn") if rope.scaling == "yarn" else ("rope",)
    yield _Setting(("position_embedding_type",), kinds, lambda found, wanted: found in wanted)
    yield _Setting(("rotary_base",), rope.theta, _close)
    yield _Setting(("rotary_percent", "rotary_percentage"), 1.0, _close)
    is_llama3 = rope.scaling == "llama3"
    yield _Setting(("use_rope_scaling", "rope_scaling", "scale_positional_embedding"), is_llama3, _same)
    for names, number in (
        (("rope_scaling_factor",), rope.factor),
        (("low_freq_factor",), rope.slow),
        (("high_freq_factor",), rope.fast),
        (("old_context_len",), rope.original_positions),
    ):
        if is_llama3:
            yield _Setting(names, number, _close)
    if not is_llama3:  # of NeMo 2's Llama 3.1
        yield _Setting(("low_freq_factor", "high_freq_factor", "old_context_len"), None, _none)
    line = rope.factor if rope.scaling == "linear" else 1.0
    yield _Setting(("seq_len_interpolation_factor", "rotary_seq_len_interpolation_factor"), line, _close)
    yield _Setting(("share_embeddings_and_output_weights",), arch.tied_embeddings, _same)
    yield _Setting(("untie_embeddings_and_output_weights",), not arch.tied_embeddings, _same)
    yield _Setting(
        (
            *("layernorm_zero_centered_gamma", "apply_layernorm_1p", "rotary_interleaved"),
            *("multi_latent_attention", "num_experts", "num_moe_experts", "softmax_scale"),
        ),
        None,
        _none,
    )


def _groups(settings: Settings) -> Settings:
    """Megatron-LM has a number of groups always, and says beside it whether it counts."""
    counts = settings.get("group_query_attention", True) and settings.get("num_query_groups")
    return {**settings, "num_query_groups": counts or settings.get("num_attention_heads")}
