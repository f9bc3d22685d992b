"""Tensor-parallel ranks decode the same rollouts, also where one of them comes to other logits."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tests.ranks import run_program
from tests.tiny import save_tiny


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.usefixtures("compiler")
def test_tensor_parallel_ranks_take_the_tokens_that_one_of_them_chose(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    run_program("tests.generation.unequal_program", tmp_path, timeout=150)
    first, second = (pickle.loads((tmp_path / f"rank{rank}.pickle").read_bytes()) for rank in range(2))
    usual, unequal = first
    assert {len(tokens) for _, _, tokens, _, _ in usual["torch"]} > {16}  # rows end at different times
    assert unequal == usual
    assert second == first  # log-probabilities included
