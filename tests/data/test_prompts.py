"""Rows become prompts or are named with file and line; an epoch shows each prompt exactly once."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rs_aligner.data import DataOrder, load_prompts, load_sft_rows
from tests.tiny import FakeTokenizer

pytestmark = pytest.mark.timeout(60)

BOS, EOS = 1, 2


class Letters(FakeTokenizer):
    """A token for each letter; `<s>` is the begin token's text."""

    def __init__(self, *, adds_bos: bool = True, bos_id: int | None = BOS) -> None:
        self.adds_bos, self.bos_id, self.eos_ids = adds_bos, bos_id, (EOS, 3)

    def encode(self, text: str, *, is_chat: bool = False, plain: Sequence[tuple[int, int]] = ()) -> list[int]:
        ids = [BOS] if self.adds_bos and not is_chat and not text.startswith("<s>") else []
        for n, part in enumerate(text.split("<s>")):
            ids += ([BOS] if n else []) + [100 + ord(letter) for letter in part]
        return ids

    def apply_chat_template(self, messages: Any, tools: Any = None, arguments: Any = None) -> tuple[str, str]:
        if messages[0]["role"] == "system":
            raise ValueError("this model knows no system message")
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]", ""


def ids(text: str) -> tuple[int, ...]:
    return tuple(100 + ord(letter) for letter in text)


@pytest.fixture
def write(tmp_path: Path):
    def _write(*rows: Any, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines))
        return str(path)

    return _write


def load(*files: str, tokenizer: Letters | None = None, max_prompt_length: int = 100, **options: Any):
    return load_prompts(files, tokenizer or Letters(), max_prompt_length=max_prompt_length, **options)


def test_a_text_row_is_a_prompt_with_the_whole_row_as_metadata(write):
    row = {"id": 7, "text": "ab", "answer": "c", "source": {"page": 3}}
    (prompt,) = load(write(row)).prompts
    assert (prompt.id, prompt.text, prompt.token_ids) == ("7", "ab", (BOS, *ids("ab")))
    assert prompt.metadata == row


def test_rows_without_an_id_are_named_by_file_and_line_and_empty_lines_count(write):
    first = write({"text": "a"}, b"", {"text": "a"}, b"  ", name="one.jsonl")
    second = write({"text": "a", "id": "x"}, name="two.jsonl")
    prompts = load(first, second).prompts
    assert [prompt.id for prompt in prompts] == [f"{first}:1", f"{first}:3", "x"]
    assert [prompt.position for prompt in prompts] == [0, 1, 2]


def test_a_template_makes_the_prompt_of_a_rows_keys(write):
    (prompt,) = load(write({"question": "1+1?", "n": 3}), template="{{Q}} {question} {n}\nA:").prompts
    assert prompt.text == "{Q} 1+1? 3\nA:"


def test_a_chat_becomes_what_the_chat_template_says_with_one_begin_token(write):
    row = {"messages": [{"role": "user", "content": "hi"}]}
    for adds_bos in (True, False):
        (prompt,) = load(write(row), tokenizer=Letters(adds_bos=adds_bos)).prompts
        assert prompt.text == "<s>[user]hi[assistant]"
        assert prompt.token_ids == (BOS, *ids("[user]hi[assistant]"))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_add_bos_overrules_the_tokenizer(adds_bos, write):
    tokenizer = Letters(adds_bos=adds_bos)
    path = write({"text": "ab"})
    assert load(path, tokenizer=tokenizer, add_bos=True).prompts[0].token_ids == (BOS, *ids("ab"))
    assert load(path, tokenizer=tokenizer, add_bos=False).prompts[0].token_ids == ids("ab")
    expected = (BOS, *ids("ab")) if adds_bos else ids("ab")
    assert load(path, tokenizer=tokenizer).prompts[0].token_ids == expected


def test_a_begin_token_that_does_not_exist_cannot_be_added(write):
    with pytest.raises(
        ValueError, match=r"model\.data\.add_bos is true, but the tokenizer has no begin token"
    ):
        load(write({"text": "a"}), tokenizer=Letters(adds_bos=False, bos_id=None), add_bos=True)


def test_over_long_prompts_are_counted_and_left_out_never_cut_or_replaced(write, caplog):
    path = write({"text": "aaaa"}, {"text": "aaa"}, {"text": "aaaaa"}, {"text": "aaa"})
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        loaded = load(path, max_prompt_length=4)
    assert [prompt.id for prompt in loaded.prompts] == [f"{path}:2", f"{path}:4"]
    assert loaded.num_too_long == 2
    assert "left out 2 prompts of more than 4 tokens" in caplog.text


def test_nothing_to_use_is_an_error(write):
    with pytest.raises(
        ValueError, match=r"rows\.jsonl: no prompts to use \(all 1 are longer than 2 tokens\)"
    ):
        load(write({"text": "aaaa"}), max_prompt_length=2)
    with pytest.raises(ValueError, match=r"no prompts to use \(no rows\); see .*model\.data\.data_prefix"):
        load(write(b""))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'{"text": NaN}', "NaN is not JSON"),
        (b'{"text": "\xff"}', "not valid UTF-8 text"),
        (b'{"text": "\\ud800"}', "not valid UTF-8 text"),
        (b"[" * 100_000, "not valid JSON"),
        ([["a"]], 'should be an object such as {"text": ...}, not list'),
        ({}, "has neither 'text' nor 'messages' but no keys"),
        (
            {"question": "a", "answer": "b"},
            "but 'question', 'answer'; set \"model.data.columns={prompt: question}\", or model.data.prompt_",
        ),
        ({"text": " \n"}, "'text' is empty"),
        ({"text": 3}, "'text' should be a text, not 3"),
        ({"text": None}, "'text' should be a text, not None"),
        ({"text": "a", "id": 1.5}, "id should be a text or a whole number, not 1.5"),
        ({"text": "a", "messages": []}, "has both 'text' and 'messages'"),
        ({"messages": []}, "should be a list of at least one message"),
        ({"messages": "hi"}, "should be a list of at least one message"),
        ({"messages": ["hi"]}, "should have the texts 'role' and 'content', not 'hi'"),
        ({"messages": [{"role": "user", "content": None}]}, "should have the texts 'role' and 'content'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "a part of a message's content is 'image'",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}], "tools": {"a": 1}},
            "'tools' should be a list of JSON",
        ),
        ({"messages": [{"role": "system", "content": "a"}]}, "cannot be applied (this model knows no system"),
    ],
)
def test_a_malformed_row_is_reported_with_file_line_and_what_is_wrong(row, reason, write):
    path = write({"text": "fine"}, row)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        load(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert reason in str(error.value)
    assert str(error.value).count(path) == 1


@pytest.mark.parametrize(
    ("row", "template", "reason"),
    [
        ({"text": "a"}, "{question}", "model.data.prompt_template names 'question', the row has 'text'"),
        ({"question": None}, "{question}", "'question' should be a text or a number, not None"),
        ({"question": "a"}, "{question:d}", "model.data.prompt_template does not fit the row"),
        ({"question": " "}, "{question}", "the prompt is empty"),
    ],
)
def test_a_row_that_its_template_does_not_fit_is_reported(row, template, reason, write):
    path = write(row)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        load(path, template=template)
    assert str(error.value).startswith(f"{path}:1: {reason}")


def test_supervised_rows_are_prompt_and_response_with_an_end(write):
    path = write(
        {"prompt": "1+1=", "response": "2"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
    )
    first, second = load_sft_rows([path], Letters(), max_length=100).rows
    assert (first.prompt, first.response) == ((BOS, *ids("1+1=")), (*ids("2"), EOS))
    assert second.prompt == (BOS, *ids("[user]hi[assistant]"))
    assert second.response == (*ids("yo"), EOS)


def test_supervised_rows_take_the_template_for_the_prompt(write):
    path = write({"question": "1+1", "response": "2"})
    (row,) = load_sft_rows([path], Letters(adds_bos=False), template="{question}=", max_length=100).rows
    assert (row.prompt, row.response) == (ids("1+1="), (*ids("2"), EOS))


def test_a_response_whose_start_would_merge_into_the_prompt_is_tokenized_alone(write):
    class Merging(Letters):
        def encode(self, text: str, *, is_chat: bool = False, plain: Any = ()) -> list[int]:
            return [BOS][is_chat:] + [ord(c) for c in text.replace("ab", "\N{LATIN SMALL LETTER AE}")]

    (row,) = load_sft_rows([write({"prompt": "xa", "response": "bc"})], Merging(), max_length=9).rows
    assert row.prompt == (BOS, ord("x"), ord("a"))
    assert row.response == (ord("b"), ord("c"), EOS)


def test_supervised_rows_that_are_too_long_are_counted(write):
    path = write({"prompt": "aaaa", "response": "b"}, {"prompt": "aa", "response": "b"})
    loaded = load_sft_rows([path], Letters(), max_length=5)
    assert (len(loaded.rows), loaded.num_too_long) == (1, 1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a"}, "has no 'response' but 'prompt'"),
        ({"prompt": "a", "response": ""}, "'response' is empty"),
        ({"response": "a"}, "has neither 'prompt' nor 'messages' but 'response'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "should end with the assistant's answer"),
        (
            {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
            "should end with the assistant's answer",
        ),
    ],
)
def test_a_malformed_supervised_row_is_reported(row, reason, write):
    path = write(row)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared below)
        load_sft_rows([path], Letters(), max_length=100)
    assert str(error.value).startswith(f"{path}:1: {reason}")


def test_real_files_load_with_a_real_tokenizer(test_data):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(test_data / "stories260k")

    class Real(FakeTokenizer):
        bos_id, eos_ids = real.bos_token_id, (real.eos_token_id,)

        def encode(self, text: str, *, is_chat: bool = False, plain: Any = ()) -> list[int]:
            return real.encode(text, add_special_tokens=not is_chat)

    stories = load_prompts(
        [str(test_data / "tinystories" / "prompts_validation.jsonl")], Real(), max_prompt_length=448
    )
    assert (len(stories.prompts), stories.num_too_long) == (128, 0)
    assert all(prompt.token_ids.count(Real.bos_id) == 1 for prompt in stories.prompts)
    assert stories.prompts[0].id == "story-512"
    problems = load_prompts(
        [str(test_data / "gsm8k" / "test.jsonl")],
        Real(),
        template="Question: {question}\nAnswer:",
        max_prompt_length=256,
    )
    assert len(problems.prompts) + problems.num_too_long == 600
    assert problems.num_too_long > 0
    assert problems.prompts[0].metadata["answer"].splitlines()[-1].startswith("####")


@given(
    num_prompts=st.integers(1, 40),
    num_per_step=st.integers(1, 50),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_epoch_shows_every_prompt_once_in_an_order_of_its_own(num_prompts, num_per_step, seed, shuffle):
    sampler = DataOrder(num_prompts, num_per_step, seed=seed, shuffle=shuffle)
    consumed = 0
    for epoch in range(3):
        steps = [next(sampler) for _ in range(sampler.steps_per_epoch)]
        assert all(len(step) == num_per_step for step in steps[:-1])
        draws = [draw for step in steps for draw in step]
        assert sorted(draw.index for draw in draws) == list(range(num_prompts))
        assert [draw.position for draw in draws] == list(range(num_prompts))
        assert {draw.epoch for draw in draws} == {epoch}
        if not shuffle:
            assert [draw.index for draw in draws] == list(range(num_prompts))
        consumed += num_prompts
        assert sampler.consumed_prompts == consumed


@given(num_prompts=st.integers(1, 20), num_per_step=st.integers(1, 25), num_steps=st.integers(0, 30))
def test_a_resumed_sampler_goes_on_as_if_it_had_never_stopped(num_prompts, num_per_step, num_steps):
    # Epoch boundaries are among these, where resuming must neither stop nor repeat.
    whole = DataOrder(num_prompts, num_per_step, seed=3)
    for _ in range(num_steps):
        next(whole)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = DataOrder(num_prompts, num_per_step, seed=3)
    resumed.load_state_dict(state)
    assert resumed.consumed_prompts == whole.consumed_prompts
    assert [next(resumed) for _ in range(5)] == [next(whole) for _ in range(5)]


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    def order(seed: int) -> list[int]:
        return [draw.index for draw in next(DataOrder(10, 10, seed=seed))]

    assert order(1) == order(1) == [0, 6, 5, 7, 1, 8, 9, 2, 3, 4]
    assert order(1) != order(2)
    sampler = DataOrder(10, 10, seed=1)
    assert [draw.index for draw in next(sampler)] != [draw.index for draw in next(sampler)]


def test_a_state_of_other_data_is_refused():
    state = DataOrder(10, 2, seed=1).state_dict()
    with pytest.raises(
        ValueError, match=r"had num_prompts = 10, now it is 11: .*exp_manager\.explicit_log_dir"
    ):
        DataOrder(11, 2, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="had seed = 1, now it is 2"):
        DataOrder(10, 2, seed=2).load_state_dict(state)


@pytest.mark.parametrize(("num_prompts", "num_per_step"), [(0, 1), (1, 0)])
def test_a_sampler_needs_prompts_and_steps_that_take_some(num_prompts, num_per_step):
    with pytest.raises(ValueError, match="at least one prompt"):
        DataOrder(num_prompts, num_per_step, seed=0)
