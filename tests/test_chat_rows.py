"""Rows of chats on models as they are: how an answer is closed, what is twice, what a user's text may do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.data import load_pairs, load_prompts, load_scored, load_sft_rows
from rs_aligner.policy.tokenizer import Tokenizer
from tests.chat_models import (
    chatml_on_a_base,
    llama3,
    thinking,
)

pytestmark = pytest.mark.timeout(60)
Write = Callable[..., str]
ASKED = {"role": "user", "content": "hi"}
ENDS = {llama3: 5, chatml_on_a_base: 2, thinking: 2}  # the token that the template writes behind a turn


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(*rows: dict[str, Any]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return _write


def prompt_of(tokenizer: Tokenizer, file: str, **how: Any) -> Any:
    (prompt,) = load_prompts([file], tokenizer, max_prompt_length=500, **how).prompts
    return prompt


def answer_of(tokenizer: Tokenizer, file: str, **how: Any) -> tuple[str, str]:
    """Prompt and response of the one supervised row, as text with all special tokens."""
    (row,) = load_sft_rows([file], tokenizer, max_length=500, **how).rows
    return tokenizer.decode(row.prompt, raw=True), tokenizer.decode(row.response, raw=True)


# What closes an answer (C1)


@pytest.mark.parametrize("made", ENDS)
def test_every_chat_row_with_an_answer_is_closed_as_the_template_closes_a_turn(made, tmp_path, write):
    tokenizer, end = Tokenizer(made(tmp_path / "model")), ENDS[made]
    chat = [ASKED, {"role": "assistant", "content": "yo"}]
    (row,) = load_sft_rows([write({"messages": chat})], tokenizer, max_length=500).rows
    assert row.response[-1] == end
    pair_file = write({"messages": [ASKED], "chosen": "yo", "rejected": "no"})
    (pair,) = load_pairs([pair_file], tokenizer, max_length=500).pairs
    assert (pair.chosen[-1], pair.rejected[-1]) == (end, end)
    rewarded = write(
        {
            "messages": [ASKED],
            "responses": ["yo", "n"],
            "rewards": [1, 0],
            "finish_reasons": ["stop", "length"],
        }
    )
    (group,) = load_scored([rewarded], tokenizer, max_length=500)
    stopped, cut = (rollout.token_ids for rollout in group.rollouts)
    assert stopped[-1] == end
    assert end not in cut
    assert not set(tokenizer.eos_ids) & set(cut)


@pytest.mark.parametrize("made", ENDS)
def test_answers_to_a_prompt_that_the_template_made_before_are_closed_alike(made, tmp_path, write):
    """`generate.py` writes such rows: their prompt is the text that was fed to the model."""
    tokenizer = Tokenizer(made(tmp_path / "model"))
    asked = {"messages": [ASKED], "responses": ["yo"], "rewards": [1]}
    (chat,) = load_scored([write(asked)], tokenizer, max_length=500)
    again = {"text": chat.prompt.text, "responses": ["yo"], "rewards": [1]}
    (text,) = load_scored([write(again)], tokenizer, max_length=500)
    assert text.prompt.token_ids == chat.prompt.token_ids
    assert [r.token_ids for r in text.rollouts] == [r.token_ids for r in chat.rollouts]


def test_plain_rows_are_closed_by_the_tokenizers_own_end_token(tmp_path, write):
    tokenizer = Tokenizer(chatml_on_a_base(tmp_path / "model"))
    (row,) = load_sft_rows([write({"prompt": "1+1=", "response": "2"})], tokenizer, max_length=99).rows
    assert row.response[-1] == 0
