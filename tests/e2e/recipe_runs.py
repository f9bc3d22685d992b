"""What the tests of the recipes share: a run that is over, what its policy was told, a model that can solve.

Left out on purpose: starting runs, which takes pytest's fixtures.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rs_aligner.policy.policy import MegatronPolicy
from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.rollout import TrainingRow
from tests.e2e.launch import read_metrics


@dataclass
class Spy:
    """What the policy was told, in order, each with a digest of its weights behind it."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    trained: list[list[TrainingRow]] = field(default_factory=list)

    def weights(self, name: str) -> list[str]:
        return [weights for call, weights in self.calls if call == name]


@dataclass
class Finished:
    """A run that is over."""

    folder: Path
    spy: Spy

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [row for row in read_metrics(self.folder) if row["step"]]

    @property
    def held_out(self) -> dict[int, float]:
        return {
            row["step"]: row["validation/reward"]
            for row in read_metrics(self.folder)
            if "validation/reward" in row
        }

    def ledger(self, step: int) -> list[LedgerRow]:
        return Ledger(self.folder / "rollouts").read(step)

    def groups(self, step: int) -> list[list[LedgerRow]]:
        rows = self.ledger(step)
        return [[row for row in rows if row.group == group] for group in sorted({r.group for r in rows})]


def digest(policy: MegatronPolicy) -> str:
    weights = hashlib.sha256()
    for parameter in policy.trainer.ddp.parameters():
        weights.update(parameter.detach().numpy().tobytes())
    return weights.hexdigest()[:12]


def watch_policy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """A spy on every policy of this process."""
    seen = Spy()

    def watch(name: str) -> None:
        method = getattr(MegatronPolicy, name)

        def watched(policy: MegatronPolicy, *args: Any, **kwargs: Any) -> Any:
            if name == "train":
                seen.trained.append(list(args[0]))
            result = method(policy, *args, **kwargs)
            seen.calls.append((name, digest(policy)))
            return result

        monkeypatch.setattr(MegatronPolicy, name, watched)

    for name in ("generate", "train", "restart", "save", "export"):
        watch(name)
    return seen


def answer_of(problem: dict[str, Any]) -> float:
    """The number behind a GSM8K problem's `####`."""
    return float(problem["answer"].rpartition("####")[2].replace(",", ""))


def warm_up(test_data: Path, folder: Path) -> Path:
    """Makes a policy that answers any question with some addition, and problems whose answers it can hit.

    The additions are random, so that it is right by chance only. Returns `folder`, which has `policy/`,
    `train.jsonl` (two problems for each answer from 2 to 12) and `validation.jsonl` (one).
    """
    lines = (test_data / "gsm8k" / "train.jsonl").read_text().strip().split("\n")
    problems = [row for row in map(json.loads, lines) if len(row["question"]) < 200]
    easy = [[row for row in problems if answer_of(row) == answer] for answer in range(2, 13)]
    train = [row for rows in easy for row in rows[:2]]
    held_out = [rows[2] for rows in easy]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, train)) + "\n")
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, held_out)) + "\n")
    source = test_data / "stories260k"
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(60):
        rows, starts = [], []
        for row in problems[8 * step : 8 * step + 8]:
            a, b = (1 + int(torch.randint(6, (1,), generator=generator)) for _ in range(2))
            prompt = tokenizer(f"Question: {row['question']} Answer:")["input_ids"]
            answer = tokenizer(f" {a} + {b} = {a + b} #### {a + b}", add_special_tokens=False)["input_ids"]
            rows.append([*prompt, *answer, tokenizer.eos_token_id])
            starts.append(len(prompt))
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = torch.full_like(tokens, -100)
        for number, (row, begin) in enumerate(zip(rows, starts, strict=True)):
            labels[number, begin : len(row)] = tokens[number, begin : len(row)]
        optimizer.zero_grad()
        model(tokens, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    return folder
