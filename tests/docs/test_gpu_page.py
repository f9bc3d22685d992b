"""The figures of the page on GPUs that are computed are those of `benchmarks/limits.py`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.limits import Part, parts_of
from rs_aligner.model.families.registry import read_architecture
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(60)
PAGE = ROOT / "docs" / "gpu.md"
ROW = re.compile(r"^\| (H\d00, [^|]*) \| ([\d.]+) \| (\d+) \| ([\d,]+) \|$", re.MULTILINE)


@pytest.fixture
def eight_billion(tmp_path: Path) -> Any:
    """The architecture that the benchmark `8b` has."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from on_device import SHAPES
    finally:
        sys.path.pop(0)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SHAPES["8b"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_architecture(tmp_path)


def steps(arch: Any, prompt: int) -> list[Part]:
    parts = parts_of(arch, [prompt] * 16, num_rollouts=16, max_length=512)
    return [part for name, part in parts.items() if name.startswith("steps")]


def test_what_a_card_can_do_at_most_is_computed_from_its_rates(eight_billion: Any) -> None:
    parts = steps(eight_billion, 512)
    found = ROW.findall(PAGE.read_text())
    assert len(found) == 4
    for card, bandwidth, rate, told in found:
        seconds = sum(part.seconds(float(bandwidth) * 1e12, float(rate) * 1e12) for part in parts)
        assert int(told.replace(",", "")) == pytest.approx(256 * 511 / seconds, rel=3e-3), card


def test_the_bytes_of_a_step_are_those_of_its_parts(eight_billion: Any) -> None:
    text = " ".join(PAGE.read_text().split())
    of_a_step = sum(part.bytes for part in steps(eight_billion, 512)) / 511
    once = 16 * 2048 * eight_billion.cache_bytes_per_token(2)
    assert f"reads {of_a_step / 1e9:.1f} GB in the mean" in text
    assert f"{16 * once / 1e9:.1f} GB a step for them" in text
    assert f"{once / 1e9:.1f} GB: about" in text
