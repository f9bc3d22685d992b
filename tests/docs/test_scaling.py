"""The table of what fits where is the plan's, and its lines are commands; the container's file lints."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import TrainRSConfig, load_config
from tests.config.conftest import compose

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module("scaling_page")
    finally:
        sys.path.pop(0)


@pytest.mark.slow
def test_the_table_is_the_plans_and_each_line_is_a_command_that_fits(script: Any, tmp_path: Path) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run python scripts/scaling_page.py"
    rows = re.findall(r"^\| (\d+B) \| \w+ \| (\d+) \| (.*?) \| (.*?) \|", text, re.MULTILINE)
    assert len(rows) == 24
    (tmp_path / "prompts.jsonl").write_text('{"text": "Once"}\n')
    for model, gpus, settings, most in rows:
        overrides = re.findall(r"`([\w.]+=\w+)`", settings)
        if not overrides and settings != "none":
            assert settings == "does not fit"
            continue
        folder = script.folder_of(model, tmp_path)
        common = [
            f"pretrained_checkpoint.restore_from_path={folder}",
            f"model.data.data_prefix.train={tmp_path}/prompts.jsonl",
            "exp_manager.explicit_log_dir=runs/mine",
            f"model.encoder_seq_length={script.ROW}",
            f"model.rs.length_params.max_length={script.RESPONSE}",
        ]
        config = load_config(compose("train_rs", [*common, *overrides]), TrainRSConfig)
        assert config.world_size == int(gpus)
        fit = script.fit_of(folder, dict(one.split("=") for one in overrides))
        assert fit.fits
        assert script.in_gib(fit.most) == most


def test_the_containers_file_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert linter is not None, "pip install -r requirements/dev.txt"
    found = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
