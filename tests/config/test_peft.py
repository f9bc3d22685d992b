"""`model.peft`: what cannot be trained is refused by its key, and an adapter folder says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import TrainRSConfig, load_config
from rs_aligner.config.peft import PeftConfig
from tests.config.conftest import problems

KEY = "model.peft"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder as `peft` writes one, of rank 4 and alpha 8."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").touch()
    return folder


def told(folder: Path, **tuning: Any) -> list[str]:
    config = PeftConfig(peft_scheme="lora", restore_from_path=str(folder), lora_tuning=tuning)
    return list(config.problems(KEY))


def test_what_a_folder_says_may_be_said_again(adapter: Path) -> None:
    assert told(adapter) == told(adapter, adapter_dim=4, alpha=8, use_rslora=False) == []


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("adapter_dim", 3, 4),
        ("adapter_dim", 5, 4),
        ("alpha", 7.5, 8.0),
        ("alpha", 16.0, 8.0),
        ("use_rslora", True, False),
    ],
)
def test_what_a_folder_says_otherwise_is_refused(adapter: Path, key: str, value: Any, stored: Any) -> None:
    (line,) = told(adapter, **{key: value})
    assert line.startswith(f"{KEY}.lora_tuning.{key} is {json.dumps(value)}")
    assert f"should be null or {json.dumps(stored)}, as in" in line
    assert f"{adapter}/adapter_config.json" in line


def test_a_folder_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    (line,) = told(tmp_path, adapter_dim=3)
    assert line.startswith(f"{KEY}.restore_from_path is ")
    assert "is no adapter folder of peft" in line


def test_an_adapter_needs_the_scheme(adapter: Path) -> None:
    given = PeftConfig(restore_from_path=str(adapter), export="adapter")
    assert [line.partition(" is ")[0] for line in given.problems(KEY)] == [
        f"{KEY}.restore_from_path",
        f"{KEY}.export",
    ]
    assert not list(PeftConfig(peft_scheme="lora", export="adapter").problems(KEY))


@pytest.mark.parametrize(
    ("tuning", "key"),
    [
        ({"adapter_dropout": 0.1}, "adapter_dropout"),
        ({"column_init_method": "zero"}, "row_init_method"),
        ({"target_modules": []}, "target_modules"),
    ],
)
def test_adapters_that_cannot_learn_alike_everywhere_are_refused(tuning: dict[str, Any], key: str) -> None:
    (line,) = PeftConfig(peft_scheme="lora", lora_tuning=tuning).problems(KEY)
    assert line.startswith(f"{KEY}.lora_tuning.{key} is ")
    assert not list(PeftConfig(lora_tuning=tuning).problems(KEY))


@pytest.mark.parametrize("scheme", [None, False, "none"])
def test_no_scheme_trains_all_weights(tree: Any, scheme: Any) -> None:
    config = load_config(tree(**{"model.peft": {"peft_scheme": scheme}}), TrainRSConfig)
    assert not config.model.peft.is_lora


def test_adapters_have_ten_times_the_rate_that_all_weights_have(tree: Any) -> None:
    def rate(**changes: Any) -> float:
        return load_config(tree(**changes), TrainRSConfig).model.optim.lr

    assert rate(**{"model.peft": {"peft_scheme": "lora"}}) == pytest.approx(10 * rate())
    assert rate(**{"model.peft": {"peft_scheme": "lora"}, "model.optim": {"lr": 3e-5}}) == 3e-5


@pytest.mark.parametrize("section", ["peft", "optim"])
def test_a_section_that_is_none_is_refused_by_its_name(tree: Any, section: str) -> None:
    (line,) = problems(tree(**{f"model.{section}": "lora"}))
    assert line.startswith(f"model.{section}")
