"""A policy folder and data files just real enough for the config check, and configs composed by Hydra."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from rs_aligner.config import ConfigError, TrainRSConfig, load_config, open_overrides

CONF = Path(__file__).resolve().parents[2] / "examples" / "conf"
POLICY = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "max_position_embeddings": 512,
}


def compose(name: str, overrides: list[str], *, opened: bool = True) -> DictConfig:
    """What `hydra.main` hands to a script that is started with these overrides."""
    return copy.deepcopy(_composed(name, tuple(overrides), opened))


@cache
def _composed(name: str, overrides: tuple[str, ...], opened: bool) -> DictConfig:
    """Once: Hydra takes some tenths of a second."""
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return hydra.compose(name, open_overrides(overrides) if opened else list(overrides))


def problems(tree: dict[str, Any], schema: Any = TrainRSConfig) -> list[str]:
    """What is told of a config that cannot run."""
    with pytest.raises(ConfigError) as error:
        load_config(tree, schema)
    assert str(error.value) == "\n".join(error.value.problems)
    return list(error.value.problems)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with `policy/`, `train.jsonl`, `validation.jsonl` and `test.jsonl`."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text(json.dumps(POLICY))
    (tmp_path / "policy" / "model.safetensors").touch()
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "Once"}\n')
    return tmp_path


@pytest.fixture
def tree(workplace: Path) -> Callable[..., dict[str, Any]]:
    """Makes the smallest config that runs, with dotted keys set to other values."""

    def make(**changes: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "exp_manager": {"explicit_log_dir": str(workplace / "run")},
            "pretrained_checkpoint": {"restore_from_path": str(workplace / "policy")},
            "model": {
                "data": {
                    "data_prefix": {
                        "train": str(workplace / "train.jsonl"),
                        "validation": str(workplace / "validation.jsonl"),
                    }
                }
            },
        }
        for key, value in changes.items():
            *path, last = key.split(".")
            section = config
            for name in path:
                section = section.setdefault(name, {})
            section[last] = value
        return config

    return make
