"""What one or two ranks find in every layout, for all tests together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.tiny import save_tiny

FAMILY = "llama"
LAYOUTS = ("one", "dp2", "tp2", "tp2sp", "pp2")


@pytest.fixture(scope="session")
def layouts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `layout_program.py` runs, with the model that it starts from."""
    folder = tmp_path_factory.mktemp("layouts")
    save_tiny(FAMILY, folder / FAMILY)
    return folder


@pytest.fixture(scope="session")
def layouts(layouts_folder: Path) -> dict[str, dict[str, Any]]:
    """By layout: what each case of `layout_program.py` gave, the stages' tensors put together."""
    found: dict[str, dict[str, Any]] = {}
    for ranks in (1, 2):
        by_rank = run_ranks("tests.policy.layout_program", ranks, layouts_folder, FAMILY, timeout=1100)
        for family, layout in by_rank[0]:
            found[layout] = {
                case: _merge([by_rank[rank][family, layout][case] for rank in range(ranks)])
                for case in by_rank[0][family, layout]
            }
    return found


def _merge(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, tuple):
        return first[0], {name: grad for part in parts for name, grad in part[1].items()}
    if isinstance(next(iter(first.values())), torch.Tensor):
        return {name: tensor for part in parts for name, tensor in part.items()}
    return first
