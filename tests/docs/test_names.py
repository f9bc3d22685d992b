"""Judges and selectors that the pages name are there: an example is tried by who reads it."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from rs_aligner.config import selection
from rs_aligner.config.judge import JudgeName
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(60)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
JUDGES = set(get_args(JudgeName))


def selectors() -> set[str]:
    found: set[str] = set()
    for section in vars(selection).values():
        field: Any = getattr(section, "model_fields", {}).get("name") if isinstance(section, type) else None
        found.update(get_args(field.annotation) if field is not None else ())
    return {name for name in found if isinstance(name, str)}


def unknown(text: str) -> list[str]:
    judges = re.findall(r"judge\.name=(\w+)", text)
    either = re.findall(r"\{name: (\w+)", text)
    return [
        *(name for name in judges if name not in JUDGES),
        *(name for name in either if name not in JUDGES | selectors()),
    ]


def test_judges_and_selectors_in_examples_are_there() -> None:
    assert {"topk", "pessimistic", "function"} <= selectors()
    assert unknown("helpful: {name: hf_classifier, kwargs: {}}, judge.name=gpt") == ["gpt", "hf_classifier"]
    found = {str(page.relative_to(ROOT)): unknown(page.read_text(encoding="utf-8")) for page in PAGES}
    assert {page: names for page, names in found.items() if names} == {}
