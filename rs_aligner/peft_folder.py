"""An adapter folder as `peft` writes it: what its `adapter_config.json` says, as far as it is supported.

Imports nothing heavy: this is said in the first second. Left out on purpose: the tensors
(`model/adapter_folder.py`), and everything that makes of an adapter more than two matrices beside a linear
layer; each such thing is refused by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rs_aligner.files import read_json_object

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_WEIGHTS_BIN = "adapter_model.bin"
HEAD_MODULES = ("score", "classifier")
"""What `peft` trains and saves whole beside the adapters of a reward model; `score` is the head here."""

_MUST_BE_EMPTY = (
    *("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "layer_replication"),
    *("layers_to_transform", "trainable_token_indices", "alora_invocation_tokens", "use_qalora"),
    *("target_parameters", "use_bdlora", "arrow_config"),
)
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base model as it is; PiSSA, OLoRA, CorDA and LoftQ change it."""


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What is the same for all adapters of a folder.

    Attributes:
        rank: r, rows of each A.
        alpha: what is learnt counts alpha / r times, or alpha / sqrt(r) times with `use_rslora`.
        base: the model that it belongs to, as the folder names it; empty where it does not.
        modules_to_save: what else was trained, and is saved whole.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    base: str = ""
    modules_to_save: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """How many times `B A x` counts (Hu et al., 2021; with rsLoRA Kalajdzievski, 2023)."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


def adapter_identity(config: dict[str, Any]) -> dict[str, Any]:
    """What two runs must have in common for one to continue the other's adapters, by our keys."""
    return {
        "peft_scheme": "lora",
        "adapter_dim": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "use_rslora": config.get("use_rslora"),
        "target_modules": config.get("target_modules"),
    }


def adapter_weights(folder: Path) -> Path:
    """The file with a folder's adapters; the one in PyTorch's own format only where there is no other."""
    own = folder / ADAPTER_WEIGHTS_BIN
    return own if own.is_file() and not (folder / ADAPTER_WEIGHTS).is_file() else folder / ADAPTER_WEIGHTS


def read_adapter_settings(folder: str | Path) -> AdapterSettings:
    """Read `adapter_config.json`.

    Raises:
        ValueError: there is none, its weights are not there, or it says something that is not supported; with
            the key, its value and what would work. The message begins behind the folder's name.
    """
    root = Path(folder)
    path = root / ADAPTER_CONFIG
    if not path.is_file():
        raise ValueError(f"is no adapter folder of peft: it has no {ADAPTER_CONFIG}")
    if not adapter_weights(root).is_file():
        raise ValueError(f"has no {ADAPTER_WEIGHTS}")
    return adapter_settings(read_json_object(path))


def adapter_settings(config: dict[str, Any]) -> AdapterSettings:
    """What an `adapter_config.json` says.

    Raises:
        ValueError: as `read_adapter_settings`.
    """
    if (kind := config.get("peft_type")) != "LORA":
        raise ValueError(f"holds an adapter of peft_type {kind!r}, which is not supported; LORA is")
    for key in _MUST_BE_EMPTY:
        if config.get(key):
            raise ValueError(
                f"has {key}={config[key]!r} in {ADAPTER_CONFIG}, which is not supported: merge it into its "
                "base model with peft (merge_and_unload) and start from that"
            )
    if (bias := config.get("bias", "none")) != "none":
        raise ValueError(f"has bias={bias!r} in {ADAPTER_CONFIG}: trained biases are not supported, none is")
    init = config.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        raise ValueError(
            f"has init_lora_weights={init!r}, which changes the base model, too: convert it with peft "
            "(path_initial_model_for_weight_conversion), or merge it and start from that"
        )
    saved = tuple(config.get("modules_to_save") or ())
    if unknown := [name for name in saved if name not in HEAD_MODULES]:
        raise ValueError(f"has modules_to_save={unknown}: only the head of a reward model (score) is read")
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise ValueError(
            f"has r={rank!r} and lora_alpha={alpha!r} in {ADAPTER_CONFIG}: both should be above 0"
        )
    return AdapterSettings(
        rank,
        float(alpha),
        bool(config.get("use_rslora", False)),
        str(config.get("base_model_name_or_path") or ""),
        saved,
    )
