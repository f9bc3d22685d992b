"""The judge of a supervised training ends with it, whatever ends it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands import build, run_data, train_sft
from rs_aligner.config import TrainSFTConfig


class Judge:
    """A judge that may hold a process or a model."""

    fingerprint = "fingerprint"

    def __init__(self) -> None:
        self.is_closed = False

    def score_texts(self, prompts: list[str], responses: list[str], metadata: list[Any]) -> Sequence[float]:
        return [1.0] * len(prompts)

    def close(self) -> None:
        self.is_closed = True


def test_the_judge_is_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge = Judge()

    def broken(*_: Any) -> Any:
        raise ValueError("rows.jsonl:3: no prompt")

    monkeypatch.setattr(build, "read_tokenizer", lambda config: (None, 128))
    monkeypatch.setattr("rs_aligner.reward.judges.load_judge", lambda config: judge)
    monkeypatch.setattr(run_data, "read_sft_data", broken)
    config = TrainSFTConfig.model_validate(
        {
            "judge": {"name": "exact_answer"},
            "exp_manager": {"explicit_log_dir": str(tmp_path)},
            "pretrained_checkpoint": {"restore_from_path": "unused"},
            "model": {"data": {"data_prefix": {"train": "rows.jsonl", "validation": "held_out.jsonl"}}},
        }
    )
    with pytest.raises(ValueError, match=r"rows\.jsonl:3"):
        train_sft.fit(config)
    assert judge.is_closed
