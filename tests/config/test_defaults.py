"""The page on defaults has every key with the default that it has, and the means of the default schedule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rs_aligner.config import SchedConfig, TrainRSConfig, load_config, plan
from rs_aligner.schedule import learning_rate
from tests.config.conftest import compose

pytestmark = pytest.mark.timeout(60)
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "defaults.md").read_text()
NO_EFFECT = "model.data.data_prefix.test"
PROJECT = "exp_manager.wandb_logger_kwargs"


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value and prefix + name != PROJECT:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_the_page_has_each_key_of_train_rs_with_its_default_and_a_reason():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.+) \|$", PAGE, re.MULTILINE)
    found = {key: shown for key, shown, _ in rows}
    tree = OmegaConf.to_container(compose("train_rs", []), resolve=False)
    keys = {key: value for key, value in leaves(tree) if key != NO_EFFECT}
    assert found.keys() == keys.keys()
    for key, value in keys.items():
        if isinstance(value, str) and value.startswith("${"):
            assert found[key].strip("`").removeprefix("as `") in value, key
        elif key != PROJECT:
            assert found[key] == (value if isinstance(value, str) else json.dumps(value)), key


def test_the_table_of_the_schedule_is_what_it_does():
    table = re.findall(
        r"^\| ([\d,]+) \| ([\d.]+)% of lr \| ([\d.]+)% of lr \| ([\d.]+)% of lr \|$", PAGE, re.M
    )
    lengths = [int(row[0].replace(",", "")) for row in table]
    assert lengths == [1, 3, 10, 100, 1000, 10_000]
    for length, (_, *told) in zip(lengths, table, strict=True):
        rates = [learning_rate(step, SchedConfig(), 1.0, length) for step in range(length)]
        figures = (rates[0], sum(rates) / length, rates[-1])
        assert [float(one) for one in told] == pytest.approx([100 * one for one in figures], abs=0.051), (
            length
        )
        assert figures[1] >= 0.45


@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_of_a_thousand_prompts_is_what_the_page_says(tree, devices):
    config = load_config(tree(**{"trainer.devices": devices}), TrainRSConfig)
    text = plan(config, num_prompts=1000, num_val_prompts=10)
    for line in (
        "at most 512 (1 a prompt)",
        "at most 8, of 64 rows",
        "2 (1 epoch, 2 steps for 1,000 prompts)",
    ):
        assert line in text
    assert "optimizer steps in all  at most 16" in text
    assert f"{512 // devices} at a time on each" in text
    assert f"micro-batches           {64 // devices} a rank" in text
    assert "warning" not in text
