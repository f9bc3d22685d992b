"""Machines are shared, so how long an example of hypothesis takes fails no test."""

from __future__ import annotations

import re
from pathlib import Path

import hypothesis

from tests.conftest import ROOT


def test_no_example_has_a_deadline_and_none_is_made_too_slowly() -> None:
    assert hypothesis.settings.default is not None
    assert hypothesis.settings.default.deadline is None
    assert hypothesis.HealthCheck.too_slow in hypothesis.settings.default.suppress_health_check


def test_no_test_sets_a_deadline_or_another_profile_by_itself() -> None:
    own = {Path(__file__), ROOT / "tests" / "conftest.py"}
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path not in own}
    setting = re.compile(r"@?settings\([^)]*deadline=(?!None)|load_profile\(")
    assert [path.name for path, text in texts.items() if setting.search(text)] == []
