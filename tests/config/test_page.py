"""docs/config.md has every key of every command, and is what its script writes."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import pytest

from rs_aligner.config.keys import leaves
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(60)

TEXT = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
BETA = "number at least 0 and below 1"
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("config_page")


def of(key: str) -> list[tuple[str, str, str]]:
    """What the rows of a key say: where it is not set, what it takes, what it means."""
    return [(default, takes, meaning) for name, default, takes, meaning in ROW.findall(TEXT) if name == key]


def test_the_page_is_what_its_script_writes(script: ModuleType) -> None:
    assert script.page() == TEXT, "run python scripts/config_page.py"


def test_each_key_of_each_command_has_a_row_with_its_meaning(script: ModuleType) -> None:
    for schema in script.COMMANDS.values():
        for leaf in leaves(schema):
            meaning = leaf.meaning or leaf.section.__doc__ or ""
            start = " ".join(meaning.split()).partition("docs/")[0].replace("|", "&#124;")
            assert start, f"{leaf.key} has no docstring"
            assert any(start in told for _, _, told in of(leaf.key)), f"{leaf.key}: not on the page"


@pytest.mark.parametrize(
    ("key", "default", "takes"),
    [
        ("model.rs.val_sampling_params.use_greedy", "`true`", "true, false"),
        ("model.rs.sampling_params.use_greedy", "`false`", "true, false"),
        ("watched_rm.on_failure", "`drop`", "`drop`, `retry`, `abort`"),
        ("remote_rm.on_failure", "`retry`", "`drop`, `retry`, `abort`"),
        ("exp_manager.explicit_log_dir", "*must be set*", "text"),
        ("exp_manager.max_time_per_run", "`null`", 'time, "DD:HH:MM:SS" or null'),
        (
            "model.optim.betas",
            "`[0.9, 0.98]`",
            f"[{BETA}, {BETA}]",
        ),
        ("model.rs.selection[top_fraction].fraction", "*must be set*", "number above 0 and at most 1"),
        ("trainer.sft.val_check_interval", "`10`; in the YAML file `50`", "whole number at least 1 or null"),
        ("judge.parts.*.weight", "`1.0`", "number"),
    ],
)
def test_a_row_tells_default_and_values(key: str, default: str, takes: str) -> None:
    (row,) = {(default, takes) for default, takes, _ in of(key)}
    assert row == (default, takes)


def test_where_commands_differ_each_has_a_row_of_its_own() -> None:
    rate, small = of("model.optim.weight_decay")
    assert (rate[0], small[0]) == ("`0.1`", "`0.1`; in the YAML file `0.01`")
    assert rate[2].startswith("(`train_rs`) ")
    assert small[2].startswith("(`train_sft`, `train_reward_model`) ")
