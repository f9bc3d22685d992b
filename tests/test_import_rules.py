"""The plain core stays plain: what importing a module brings along, and how long it takes.

import-linter reads the sources (its contracts stand in pyproject.toml). These tests import for real, so
they also see a package's `__init__` and what third parties bring. The last run the command, as
`benchmarks/startup.py` does, which records the CPU seconds; here only what is loaded counts.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import startup

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
    "rs_aligner.report.run_data",
    "rs_aligner.proof.chance",
    "rs_aligner.proof.watched",
    "rs_aligner.schedule",
    "rs_aligner.users_code",
    "rs_aligner.reward.protocol",
]
WITH_TORCH = ["rs_aligner.loss", "rs_aligner.selection"]

# Each module is imported by a fork of its own, which has what the interpreter and `first` brought.
PROBE = """
import json, os, sys
for name in {first}:
    __import__(name)
for name in {modules}:
    child = os.fork()
    if child == 0:
        __import__(name)
        print(json.dumps([name, sorted(sys.modules)]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(name + " cannot be imported")
"""
Probes = dict[str, tuple[int, set[str]]]
MOST = (
    500  # modules behind an import without torch: pydantic, OmegaConf and numpy; a heavy one brings hundreds
)
MOST_WITH_TORCH = 1500  # torch itself has some 1,200


def probe(modules: list[str], first: list[str]) -> Probes:
    """Imports each module by itself behind `first`: how many modules there are then, of which packages."""
    command = [sys.executable, "-c", PROBE.format(modules=modules, first=first)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = map(json.loads, run.stdout.splitlines())
    return {name: (len(loaded), {one.split(".", 1)[0] for one in loaded}) for name, loaded in found}


@pytest.fixture(scope="module")
def without_torch() -> Probes:
    return probe(WITHOUT_TORCH, [])


@pytest.fixture(scope="module")
def with_torch() -> Probes:
    return probe(WITH_TORCH, ["torch"])


@pytest.mark.timeout(150)
@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_plain_module_imports_neither_torch_nor_anything_heavy(module, without_torch):
    number, loaded = without_torch[module]
    assert not loaded & (HEAVY | {"torch"})
    assert number <= MOST


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("module", WITH_TORCH)
def test_selection_and_loss_import_nothing_heavy_but_torch(module, with_torch):
    number, loaded = with_torch[module]
    assert not loaded & HEAVY
    assert number <= MOST_WITH_TORCH


@pytest.mark.timeout(60)
def test_the_probe_sees_a_heavy_import_and_what_came_before_it():
    found = probe(["hydra", "json"], ["decimal"])
    assert "hydra" in found["hydra"][1]
    assert "hydra" not in found["json"][1]
    assert "decimal" in found["json"][1]


@pytest.mark.parametrize(
    "script", ["train_rs", "train_sft", "train_reward_model", "generate", "serve_reward"]
)
def test_a_script_needs_nothing_that_an_installed_wheel_lacks_but_its_config(script):
    text = (ROOT / "examples" / f"{script}.py").read_text()
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"__future__", "pathlib", "rs_aligner", "sys"}
    assert len(text.splitlines()) <= 20


CONFIG = {"hydra", "numpy", "omegaconf", "pydantic", "yaml"}
FRAMEWORKS = {"megatron", "nemo", "pytriton", "torch", "transformers", "tritonclient"}
# What costs seconds, and nothing that comes before the first token uses.
OTHERS = {
    *("lightning", "matplotlib", "networkx", "onnx", "pandas", "pyarrow", "pytorch_lightning", "scipy"),
    *("sklearn", "torchmetrics", "torchvision", "wandb"),
}
COMPILERS = {"torch._dynamo", "torch._inductor"}


@pytest.mark.parametrize(
    ("arguments", "status", "none_of", "most"),
    [
        (("--help",), 0, CONFIG | FRAMEWORKS | OTHERS, 150),
        (("train",), 2, (FRAMEWORKS | OTHERS | {"numpy"}), 620),
    ],
    ids=["help", "a config error"],
)
def test_the_command_answers_before_anything_slow_is_loaded(
    arguments: tuple[str, ...], status: int, none_of: set[str], most: int
) -> None:
    found = startup.look(arguments)
    assert found["status"] == status
    assert not {name.split(".")[0] for name in found["modules"]} & none_of
    assert len(found["modules"]) <= most


@pytest.mark.slow
def test_the_first_token_is_sampled_without_what_samples_nothing(test_data: Path) -> None:
    found = startup.look(("train", *startup.STORIES), stops=True)
    assert found["status"] == 0
    loaded = set(found["modules"])
    assert {"torch", "rs_aligner.generation.choosing"} <= loaded
    assert not loaded & COMPILERS
    assert not any(name.startswith("transformers.models") for name in loaded)  # it reads 1,600 files for that
    packages = {name.split(".")[0] for name in loaded}
    assert not packages & (OTHERS | {"nemo", "pytriton", "tensorboard", "tritonclient"})
    assert len(loaded) <= 3300  # Megatron and torch have 2,500 of them
