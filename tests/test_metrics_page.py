"""docs/metrics.md explains every key that a run writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fake_run import FakeRun

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


def explained() -> list[re.Pattern[str]]:
    """What the first columns of the page's tables name; `<k>` stands for any number, others for words."""
    cells = re.findall(r"^\| (`[^|]+`) \|", PAGE.read_text(), re.MULTILINE)
    keys = [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]
    some = {"<k>": r"\d+", "<reason>": r"\w+", "<name>": ".+", "<file>": ".+"}
    return [re.compile(re.sub("<\\w+>", lambda found: some[found[0]], re.escape(key))) for key in keys]


@pytest.mark.parametrize("top_n", [1, 4])
def test_every_key_of_a_run_is_on_the_page(tmp_path, top_n):
    run = FakeRun(tmp_path / "run")
    run.start(steps=3, top_n_rollouts=top_n)
    written = {key for row in run.rows for key in row}
    assert len(written) > 30
    assert not [key for key in sorted(written) if not any(one.fullmatch(key) for one in explained())]


def test_the_page_is_looked_at_key_by_key():
    patterns = explained()
    assert any(one.fullmatch("best_of/16") for one in patterns)
    assert not any(one.fullmatch("best_of/x") or one.fullmatch("reward/other") for one in patterns)
