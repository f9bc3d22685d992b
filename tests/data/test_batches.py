"""Rows that are read many at a time are what they are one at a time, and take few calls of the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.data import load_pairs, load_prompts, load_scored, load_sft_rows
from rs_aligner.model.encoding import Encoder
from rs_aligner.model.tokenizer import Tokenizer
from tests.chat_models import chatml_on_a_base

pytestmark = pytest.mark.timeout(60)
NUMBER = 2500  # more than two batches
TEXTS = ("Say {n}. ", "two  spaces {n}", "äöü \u4f60 {n}\n", "<|im_end|> {n}", "{n}")


def rows(kind: str) -> list[dict[str, Any]]:
    """Texts, chats, control tokens in both, and answers."""
    found: list[dict[str, Any]] = []
    for n in range(NUMBER):
        text = TEXTS[n % len(TEXTS)].format(n=n)
        chat = [{"role": "user", "content": text}]
        row: dict[str, Any] = {"messages": chat} if n % 3 else {"text" if kind in ASKS else "prompt": text}
        if kind == "sft":
            row = {**row, "messages": [*chat, {"role": "assistant", "content": f" {n}"}]} if n % 3 else row
            row |= {} if n % 3 else {"response": f"{n} <|im_end|>"}
        elif kind == "pairs":
            row |= {"chosen": f"yes {n}", "rejected": f" no {n}"}
        elif kind == "scored":
            row |= {"responses": [f"a {n}", ""], "rewards": [1, 0], "finish_reasons": ["stop", "length"]}
        found.append(row)
    return found


ASKS = ("prompts", "scored")
READ = {
    "prompts": lambda file, tokenizer: load_prompts([file], tokenizer, max_prompt_length=99),
    "sft": lambda file, tokenizer: load_sft_rows([file], tokenizer, max_length=99),
    "pairs": lambda file, tokenizer: load_pairs([file], tokenizer, max_length=99),
    "scored": lambda file, tokenizer: load_scored([file], tokenizer, max_length=99),
}


@pytest.mark.parametrize("kind", list(READ))
def test_a_batch_is_read_as_its_rows_one_by_one(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(chatml_on_a_base(tmp_path / "model"))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    calls = 0
    raw = Encoder._raw

    def counted(encoder: Encoder, text: str) -> list[int]:
        nonlocal calls
        calls += text not in encoder._ready and text != "\n"
        return raw(encoder, text)

    monkeypatch.setattr(Encoder, "_raw", counted)
    together = READ[kind](str(file), tokenizer)
    batched, calls = calls, 0
    monkeypatch.setattr("rs_aligner.data.batches._BATCH", 1)
    monkeypatch.setattr(Encoder, "prepare", lambda encoder, texts: None)
    alone = READ[kind](str(file), tokenizer)
    assert together == alone
    assert len(getattr(alone, "prompts", getattr(alone, "rows", getattr(alone, "pairs", alone)))) == NUMBER
    assert batched < calls * 0.7  # what is left are control tokens that are spelled out
    assert calls > NUMBER


def test_a_row_that_is_wrong_is_told_of_behind_those_before_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "id": []}\n{"text": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: id should be"):
        load_prompts([str(file)], Tokenizer(chatml_on_a_base(tmp_path / "model")), max_prompt_length=99)
