"""What a chat template says: what ends a turn, what it begins an answer with, what it does not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from rs_aligner.model.tokenizer import Tokenizer
from tests.chat_models import (
    CHATML,
    LLAMA3,
    SPECIAL,
    THINK,
    chatml_on_a_base,
    llama3,
    save_tokenizer,
    thinking,
)

pytestmark = pytest.mark.timeout(60)


def closing(folder: Path) -> list[str]:
    tokenizer = Tokenizer(folder)
    names = {i: text for text, i in tokenizer._ids.items()}
    return [names[i] for i in tokenizer.closing(True)]


def test_a_turn_of_llama_3_ends_with_the_end_of_turn_and_not_with_the_first_id_of_the_list(tmp_path):
    tokenizer = Tokenizer(llama3(tmp_path))
    assert tokenizer.eos_ids == (1, 4, 5)  # end of text, end of message, end of turn
    assert tokenizer.closing(is_chat=True) == (5,)


def test_a_turn_on_a_base_model_ends_as_the_template_has_it_and_sampling_stops_there(tmp_path):
    tokenizer = Tokenizer(chatml_on_a_base(tmp_path))
    assert tokenizer.named_eos_ids == (0,)  # the end of a text
    assert tokenizer.closing(is_chat=True) == (2,)
    assert tokenizer.closing(is_chat=False) == (0,)
    assert tokenizer.eos_ids == (0, 2)
    assert "<|im_end|>" in tokenizer.notes()[0]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["<|im_end|>"]),  # and a line break behind it, which is no part of the turn
        (CHATML.replace("<|im_end|>\n", "<|im_end|>"), ["<|im_end|>"]),
        (CHATML.replace("<|im_end|>", " <|im_end|>"), ["Ġ", "<|im_end|>"]),
        # A line of text ends the turn, and no token: the tokenizer's own end token has to do.
        (CHATML.replace("<|im_end|>", ""), ["<|endoftext|>"]),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", ["<|endoftext|>"]),
        # Written only where another turn follows.
        (CHATML.replace("<|im_end|>", "{% if not loop.last %}<|endoftext|>{% endif %}"), ["<|endoftext|>"]),
        # A chat without a system message is refused.
        (
            "{% if messages[0].role != 'system' %}{{ raise_exception('system!') }}{% endif %}" + CHATML,
            ["<|im_end|>"],
        ),
        # Behind a chat that does not go on there is an end of text, too.
        (CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}", ["<|im_end|>"]),
        # The answer does not come back as it was, or not at all.
        ("{% for m in messages %}{{ m.role }}{% endfor %}", ["<|endoftext|>"]),
        ("{{ raise_exception('no chats') }}", ["<|endoftext|>"]),
        (None, ["<|endoftext|>"]),
    ],
)
def test_what_ends_a_turn_is_what_the_template_writes_behind_one(template, expected, tmp_path):
    assert closing(chatml_on_a_base(tmp_path, template)) == expected


def test_a_turn_that_only_the_next_ones_header_ends_is_ended_by_it_if_the_model_names_it(tmp_path):
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    special = ["<|endoftext|>", "<|user|>", "<|assistant|>"]
    named = save_tokenizer(tmp_path / "a", special, template=template, eos="<|endoftext|>", named=[0, 1])
    other = save_tokenizer(tmp_path / "b", special, template=template, eos="<|endoftext|>", named=[0])
    assert (closing(named), closing(other)) == (["<|user|>"], ["<|endoftext|>"])


def test_plain_text_keeps_the_tokenizers_own_end_token(tmp_path):
    assert Tokenizer(llama3(tmp_path / "a")).closing(is_chat=False) == (5,)
    plain = save_tokenizer(tmp_path / "b", SPECIAL["plain"], eos="</s>", named=[0, 1])
    assert Tokenizer(plain).closing(is_chat=False) == Tokenizer(plain).closing(is_chat=True) == (1,)


@pytest.mark.parametrize(
    ("arguments", "prefill"),
    [
        ({}, "<think>\n"),
        ({"enable_thinking": True}, "<think>\n"),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    ],
)
def test_what_the_template_begins_an_answer_with_is_told(arguments, prefill, tmp_path):
    tokenizer = Tokenizer(thinking(tmp_path))
    tokenizer.configure(arguments)
    messages = [{"role": "user", "content": "hi"}]
    text, found = tokenizer.apply_chat_template(messages)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" + prefill
    assert found == prefill
    assert tokenizer.chat_in(text) == (True, True, prefill)
    assert tokenizer.chat_in("hi") == (False, False, "")


def test_a_rows_own_arguments_count_for_that_row(tmp_path):
    tokenizer = Tokenizer(thinking(tmp_path))
    messages = [{"role": "user", "content": "hi"}]
    assert (
        tokenizer.apply_chat_template(messages, None, {"enable_thinking": False})[1]
        == "<think>\n\n</think>\n\n"
    )
    assert tokenizer.apply_chat_template(messages)[1] == "<think>\n"


@pytest.mark.parametrize("template", [CHATML, LLAMA3, "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_a_template_that_begins_no_answer_has_no_prefill(template, tmp_path):
    tokenizer = Tokenizer(
        save_tokenizer(tmp_path, SPECIAL["chatml"], template=template, bos="<|im_start|>", named=0)
    )
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])[1] == ""


def test_an_argument_that_the_template_does_not_read_is_refused(tmp_path):
    tokenizer = Tokenizer(thinking(tmp_path))
    with pytest.raises(ValueError, match=r"data\.chat_template_kwargs\.enable_thinkng: .* enable_thinking$"):
        tokenizer.configure({"enable_thinkng": False})
    with pytest.raises(ValueError, match=r"kwargs\.add_generation_prompt is set by the program"):
        tokenizer.configure({"add_generation_prompt": False})
    bare = Tokenizer(save_tokenizer(tmp_path / "bare", SPECIAL["plain"], eos="</s>"))
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        bare.configure({"enable_thinking": False})


def test_a_prefilled_turn_is_gone_on_with(tmp_path):
    tokenizer = Tokenizer(thinking(tmp_path / "think"))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, "}]
    text, prefilled = tokenizer.apply_chat_template(messages)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSure, "
    assert prefilled == "Sure, "
    trims = Tokenizer(llama3(tmp_path / "llama3"))
    assert trims.apply_chat_template(messages)[0].endswith("assistant<|end_header_id|>\n\nSure, ")


def test_which_texts_the_template_has_written_already(tmp_path):
    tokenizer = Tokenizer(llama3(tmp_path))
    messages = [{"role": "user", "content": "hi"}]
    written = tokenizer.apply_chat_template(messages)[0]
    assert tokenizer.chat_in(written) == (True, False, "")
    assert tokenizer.chat_in(written + "and so") == (True, False, "")
    assert tokenizer.chat_in("hi") == (False, False, "")


def test_every_template_here_reads_its_variables(tmp_path):
    tokenizer = Tokenizer(thinking(tmp_path, THINK + "{% generation %}x{% endgeneration %}{{ now }}"))
    tokenizer.configure({"now": "Monday"})
