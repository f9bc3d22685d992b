"""Preference pairs: how their files are read, and the loss that a reward model learns from them."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rs_aligner.data import load_pairs
from rs_aligner.loss import bradley_terry
from rs_aligner.rollout import PreferencePair
from tests.tiny import FakeTokenizer

pytestmark = pytest.mark.timeout(60)
BOS, EOS = 256, 257


class Bytes(FakeTokenizer):
    """A token for each byte, a begin token in front, and a chat template of two marks."""

    bos_id = BOS
    eos_ids = (EOS, 7)

    def encode(self, text: str, *, is_chat: bool = False, plain: Any = ()) -> list[int]:
        return [BOS, *text.encode()][is_chat:]

    def apply_chat_template(self, messages: Any, tools: Any = None, arguments: Any = None) -> tuple[str, str]:
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<a>", ""


def write(folder: Path, *rows: Any) -> list[str]:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(file)]


def test_a_pair_is_its_prompt_with_each_answer_and_an_end_token(tmp_path):
    files = write(tmp_path, {"prompt": "ab", "chosen": "cd", "rejected": "e"})
    (pair,) = load_pairs(files, Bytes(), max_length=10).pairs
    assert pair == PreferencePair((BOS, *b"abcd", EOS), (BOS, *b"abe", EOS))
    assert len(pair) == 6


def test_the_prompt_may_be_a_chat_or_come_from_a_template(tmp_path):
    answers = {"chosen": "x", "rejected": "y"}
    files = write(tmp_path, {"messages": [{"role": "user", "content": "hi"}], **answers})
    (pair,) = load_pairs(files, Bytes(), max_length=99).pairs
    assert pair.chosen == (*b"<user>hi<a>x", EOS)  # the template writes a begin token of its own, if any
    files = write(tmp_path, {"question": "q", **answers})
    (pair,) = load_pairs(files, Bytes(), template="Q: {question}", add_bos=False, max_length=99).pairs
    assert pair.rejected == (*b"Q: qy", EOS)


def test_what_is_too_long_or_says_nothing_is_left_out_and_counted(tmp_path, caplog):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    files = write(
        tmp_path,
        good,
        {**good, "rejected": "much too long"},
        {**good, "prompt": "aaaaa"},
        {**good, "rejected": "b"},
        {**good, "chosen": "d"},
    )
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        found = load_pairs(files, Bytes(), max_length=9, max_prompt_length=5)
    assert [pair.chosen[2] for pair in found.pairs] == [ord("b"), ord("d")]
    assert (found.num_too_long, found.num_ties) == (2, 1)
    assert "left out 2 pairs of more than 9 tokens" in caplog.text
    assert "left out 1 pairs whose answers are the same" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "has no 'rejected' but 'prompt', 'chosen'"),
        ({"prompt": "a", "rejected": "b"}, "has no 'chosen'"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "a", "chosen": 1, "rejected": "c"}, "'chosen' should be a text, not 1"),
        ({"chosen": "b", "rejected": "c"}, "has neither 'prompt' nor 'messages'"),
        ({"prompt": "", "chosen": "b", "rejected": "c"}, "'prompt' is empty"),
        ({"messages": [], "chosen": "b", "rejected": "c"}, "at least one message"),
        ([1], "should be an object"),
    ],
)
def test_a_row_that_is_no_pair_is_an_error_with_its_line(tmp_path, row, message):
    files = write(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"}, row)
    with pytest.raises(ValueError, match=message) as error:
        load_pairs(files, Bytes(), max_length=99)
    assert str(error.value).startswith(f"{files[0]}:2: ")


def test_files_without_a_usable_pair_are_an_error_that_says_why(tmp_path):
    tie = {"prompt": "a", "chosen": "b", "rejected": "b"}
    with pytest.raises(ValueError, match=r"no pairs to use \(in all 2, chosen and rejected are the same\)"):
        load_pairs(write(tmp_path, tie, tie), Bytes(), max_length=9)
    with pytest.raises(ValueError, match=r"no pairs to use \(all 1 are longer than 2 tokens\)"):
        load_pairs(write(tmp_path, {**tie, "rejected": "c"}), Bytes(), max_length=2)


def test_the_loss_is_minus_the_log_of_the_logistic_function_of_the_difference():
    chosen, rejected = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.5, 1.0, 0.5])
    loss = bradley_terry(chosen, rejected, torch.ones(3, dtype=torch.bool), 3)
    expected = sum(math.log(1 + math.exp(-d)) for d in (1.5, -2.0, 0.0)) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_shares_of_the_loss_add_up_and_filling_adds_nothing():
    generator = torch.Generator().manual_seed(1)
    chosen, rejected = torch.randn(2, 7, generator=generator)
    mask = torch.ones(7, dtype=torch.bool)
    whole = bradley_terry(chosen, rejected, mask, 7)
    parts = [bradley_terry(chosen[i : i + 3], rejected[i : i + 3], mask[i : i + 3], 7) for i in (0, 3, 6)]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)
    filled = torch.tensor([1.0, math.nan], requires_grad=True)
    loss = bradley_terry(filled, torch.tensor([0.0, math.inf]), torch.tensor([True, False]), 1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-1)))
    assert filled.grad is not None
    assert filled.grad.tolist() == pytest.approx([-1 / (1 + math.e), 0.0])


def test_a_far_too_low_reward_gives_a_finite_loss_and_gradient():
    chosen = torch.tensor([-500.0], requires_grad=True)
    loss = bradley_terry(chosen, torch.tensor([500.0]), torch.ones(1, dtype=torch.bool), 1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1000.0)
    assert chosen.grad is not None
    assert float(chosen.grad) == pytest.approx(-1.0)


@pytest.mark.parametrize("denominator", [0, -1, math.nan])
def test_a_denominator_that_counts_nothing_is_refused(denominator):
    one = torch.ones(1)
    with pytest.raises(ValueError, match="denominator must be above zero"):
        bradley_terry(one, one, one.bool(), denominator)


def test_rewards_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="must all be"):
        bradley_terry(torch.ones(2), torch.ones(3), torch.ones(2).bool(), 2)
