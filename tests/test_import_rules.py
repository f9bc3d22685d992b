"""The plain core stays plain: what importing a module brings along, and how long it takes.

import-linter reads the sources (its contracts stand in pyproject.toml). These tests import for real, so
they also see a package's `__init__` and what third parties bring.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "gevent",
    "hydra",
    "lightning",
    "megatron",
    "nemo",
    "pytorch_lightning",
    "pytriton",
    "transformers",
    "tritonclient",
}
WITHOUT_TORCH = [
    "rs_aligner",
    "rs_aligner.answers",
    "rs_aligner.rollout",
    "rs_aligner.config",
    "rs_aligner.files",
    "rs_aligner.record.ledger",
    "rs_aligner.record.metrics",
    "rs_aligner.objective.rows",
    "rs_aligner.proof.chance",
    "rs_aligner.proof.watched",
    "rs_aligner.schedule",
    "rs_aligner.users_code",
    "rs_aligner.reward.protocol",
]
WITH_TORCH = ["rs_aligner.loss", "rs_aligner.selection"]

PROBE = """
import json, sys, time
for name in {first}:
    __import__(name)
start = time.process_time()
__import__({module!r})
print(json.dumps([time.process_time() - start, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


def probe(module: str, first: list[str]) -> tuple[float, set[str]]:
    """Imports a module in a fresh interpreter: CPU seconds beyond `first`, and what was loaded."""
    code = PROBE.format(module=module, first=first)
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    seconds, names = json.loads(run.stdout)
    return seconds, set(names)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_plain_module_imports_in_under_a_second_without_torch(module):
    seconds, loaded = probe(module, [])
    assert not loaded & (HEAVY | {"torch"})
    assert seconds < 1


@pytest.mark.timeout(150)
@pytest.mark.parametrize("module", WITH_TORCH)
def test_selection_and_loss_import_in_under_a_second_beyond_torch(module):
    seconds, loaded = probe(module, ["torch"])
    assert not loaded & HEAVY
    assert seconds < 1


@pytest.mark.timeout(60)
def test_the_probe_sees_a_heavy_import():
    assert "hydra" in probe("hydra", [])[1]


@pytest.mark.parametrize(
    "script", ["train_rs", "train_sft", "train_reward_model", "generate", "serve_reward"]
)
def test_a_script_needs_nothing_that_an_installed_wheel_lacks_but_its_config(script):
    text = (ROOT / "examples" / f"{script}.py").read_text()
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"__future__", "hydra", "omegaconf", "rs_aligner", "sys"}
    assert len(text.splitlines()) <= 30
