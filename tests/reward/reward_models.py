"""A tiny random reward model, rows for it, and what `transformers` says of them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tests.tiny import save_tiny_with_tokenizer

PROMPTS = ["Once upon a time", "A", "The sea is", "Why? " * 20]
RESPONSES = [" there was a fox.", "", " wet and blue " * 5, " Because."]


def save_reward_model(folder: Path, family: str = "llama") -> Path:
    """A reward model as `transformers` saves one, with a tokenizer; returns `folder`."""
    save_tiny_with_tokenizer(folder, family=family)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=1)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def token_rows(folder: Path) -> list[list[int]]:
    """The rows as token ids, closed by an end token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [
        tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id]
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]


def rewards_by_transformers(folder: Path, rows: list[list[int]] | None = None) -> list[float]:
    """The rewards of token ids (of `token_rows`), one row at a time."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return [float(model(torch.tensor([ids])).logits) for ids in rows or token_rows(folder)]
