"""What a user would bring: a model, prompts, held-out prompts and a judge, for stories and for additions."""

from __future__ import annotations

import json
import random
import runpy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a first run needs, as a user has it.

    Attributes:
        model: a Hugging Face folder.
        train, held_out: rows with `text` and `topic`, which the README's judge looks for in the response.
    """

    model: Path
    train: list[Row]
    held_out: list[Row]

    def write(self, folder: Path, num_prompts: int) -> None:
        """Put so many prompts, the held-out ones and a link to the model where the README has them."""
        rows = (("my_prompts.jsonl", self.train[:num_prompts]), ("my_held_out_prompts.jsonl", self.held_out))
        for name, some in rows:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some))
        (folder / "path" / "to").mkdir(parents=True)
        (folder / "path" / "to" / "model").symlink_to(self.model)


@pytest.fixture(scope="session")
def stories(test_data: Path) -> Task:
    """A pretrained model of 260,000 parameters, which is to write of the sun; a fifth of its stories do."""

    def texts(name: str) -> list[str]:
        lines = (test_data / "tinystories" / name).read_text().splitlines()
        return [json.loads(line)["text"] for line in lines]

    train, held_out = (
        [{"text": text, "topic": "sun"} for text in texts(f"prompts_{name}.jsonl")]
        for name in ("train", "validation")
    )
    # Five steps, and not ten: its answers are long, and what they cost is most of what these tests cost.
    return Task(test_data / "stories260k", train[:320], held_out[:64])


@pytest.fixture(scope="session")
def additions(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A policy of 0.1 million parameters that adds right now and then; a topic is the sum."""
    policy = runpy.run_path(str(ROOT / "examples" / "small_policy.py"))
    problems = runpy.run_path(str(ROOT / "examples" / "arithmetic" / "make_task.py"))["additions"](2, 0)
    # The README's judge reads `topic`, the verifiers `answer`.
    rows = [{"text": question, "topic": sum_, "answer": sum_} for question, sum_ in islice(problems, 900)]
    folder = tmp_path_factory.mktemp("additions")
    sizes = {"hidden": 64, "layers": 2, "heads": 4, "positions": 512}  # room for the default of 256 tokens
    policy["save_policy"](folder, "0123456789+=", 0, **sizes)
    rng = random.Random(0)
    pairs = [(rng.randrange(100), rng.randrange(10)) for _ in range(7_000)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    texts = [(f"{a}+{b}={a + b}", True) for a, b in pairs]
    policy["warm_up"](folder, texts, 0, epochs=1, lr=4e-3, batch=64)
    torch.set_num_threads(threads)
    return Task(folder, rows[:640], rows[700:])
