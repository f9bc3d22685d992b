"""The quickstart's task: right, disjoint, the same for the same seed, and small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "arithmetic" / "make_task.py"


def make(folder: Path, seed: int) -> dict[str, list[tuple[int, int, int]]]:
    """Runs the script; for each file its additions, as first number, second number and answer."""
    command = [sys.executable, str(SCRIPT), "--out", str(folder), "--seed", str(seed)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    files = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [tuple(json.loads(line).values()) for line in path.read_text().splitlines()]
        parts = [re.fullmatch(r"(\d+)\+(\d+)= (\d+)", " ".join(row)) for row in rows]
        files[path.stem] = [(int(part[1]), int(part[2]), int(part[3])) for part in parts]
    return files


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_task_is_right_disjoint_repeatable_and_its_policy_small(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = make(tmp_path / "a", seed=3)
    assert sorted(files) == ["dev", "sft", "train", "validation"]
    assert len(files["validation"]) >= 1000
    additions = [row for rows in files.values() for row in rows]
    assert all(a + b == answer and a < 1000 and b < 100 for a, b, answer in additions)
    assert len({frozenset((a, b)) for a, b, _ in additions}) == len(additions)

    assert make(tmp_path / "b", seed=3) == files
    weights = "policy_start/model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    assert make(tmp_path / "c", seed=4)["validation"] != files["validation"]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a" / "policy_start")
    tokens = tokenizer("417+38=").input_ids
    assert len(tokens) == 8  # <s> and a token for each character
    assert tokenizer.decode([*tokens, tokenizer.eos_token_id], skip_special_tokens=True) == "417+38="
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "policy_start")
    assert model.num_parameters() < 1_000_000
