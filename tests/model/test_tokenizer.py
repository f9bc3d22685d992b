"""The tokenizer as the house sees it: end tokens, begin token, what a response adds to a prompt."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from rs_aligner.model.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Word pieces whose leading space is drawn as a sign, as in SentencePiece; `</s>` (2) ends a text."""
    pieces = ["<unk>", "<s>", "</s>", "<end>", "▁Hello", "▁world", "▁", "lo", "!", "▁a", "b"]
    made = tokenizers.Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<end>"]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(tmp_path)
    return tmp_path


def set_end_tokens(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps({"eos_token_id": value}))


def test_end_tokens_are_the_models_and_the_tokenizers_own(folder: Path) -> None:
    assert Tokenizer(folder).eos_ids == (2,)
    set_end_tokens(folder, "generation_config.json", [3, 8])
    assert Tokenizer(folder).eos_ids == (3, 8, 2)


def test_the_generation_configs_end_tokens_come_before_the_configs(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 3}))
    assert set(Tokenizer(folder).eos_ids) == {3, 2}
    set_end_tokens(folder, "generation_config.json", 8)
    assert set(Tokenizer(folder).eos_ids) == {8, 2}
    set_end_tokens(folder, "generation_config.json", None)
    assert set(Tokenizer(folder).eos_ids) == {3, 2}


def test_token_0_can_be_an_end_token(folder: Path) -> None:
    set_end_tokens(folder, "generation_config.json", 0)
    assert set(Tokenizer(folder).eos_ids) == {0, 2}


def test_the_begin_token_is_known(folder: Path) -> None:
    assert Tokenizer(folder).bos_id == 1


def test_what_a_response_adds_keeps_its_leading_space(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert tokenizer.decode([5, 8]) == "world!"
    assert tokenizer.continuation([1, 4], [5, 8, 2]) == " world!"
    assert tokenizer.continuation([1, 4], [7]) == "lo"
    assert tokenizer.continuation([1], [4]) == "Hello"


def test_special_tokens_are_no_part_of_a_text(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert tokenizer.continuation([1, 4], [3, 5, 2]) == " world"
    assert tokenizer.continuation([4], [2]) == ""


def test_a_chat_ends_where_the_answer_begins(folder: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert Tokenizer(folder).apply_chat_template(messages) == ("<user>Hello<assistant>", "")


def test_what_a_template_refuses_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="no tools"):
        Tokenizer(folder).apply_chat_template([{"role": "tool", "content": "x"}])


def test_a_tokenizer_without_a_chat_template_says_so(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="chat_template"):
        Tokenizer(folder).apply_chat_template([{"role": "user", "content": "Hello"}])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer \(tokenizer\.json\)") as error:
        Tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="the tokenizer cannot be read") as error:
        Tokenizer(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize(
    "content", ["", "\0" * 40, '{"eos_token_id": [3', "[]"], ids=["cut", "zeros", "half", "a list"]
)
def test_a_damaged_file_beside_the_tokenizer_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(name)):
        Tokenizer(folder)


def test_too_little_memory_is_no_fault_of_the_tokenizer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (MemoryError(), ImportError("libx.so: failed to map segment from shared object")):

        def lack(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr("rs_aligner.model.tokenizer.read_files", lack)
        with pytest.raises(type(error)):
            Tokenizer(folder)


def test_a_model_without_an_end_token_is_refused(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "eos_token"}))
    with pytest.raises(ValueError, match=r"no end token; set eos_token_id in generation_config\.json"):
        Tokenizer(folder)
    set_end_tokens(folder, "generation_config.json", 3)
    assert Tokenizer(folder).eos_ids == (3,)


def test_the_real_tokenizer_reads_back_what_it_wrote(test_data: Path) -> None:
    tokenizer = Tokenizer(test_data / "stories260k")
    text = "Once upon a time, there was a little girl"
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_id == 1
    assert tokenizer.decode(ids) == text
    for cut in range(1, len(ids)):
        assert tokenizer.decode(ids[:cut]) + tokenizer.continuation(ids[:cut], ids[cut:]) == text


@pytest.mark.parametrize(
    ("named", "model_type"),
    [
        ("TokenizersBackend", "llama"),
        ("PreTrainedTokenizerFast", "llama"),
        ("PreTrainedTokenizerFast", "qwen2"),
        ("LlamaTokenizer", "llama"),
        ("LlamaTokenizerFast", "mistral"),
        ("Qwen2Tokenizer", "qwen3"),
        (None, "llama"),
        ("LlamaTokenizer", None),
    ],
)
def test_it_is_the_tokenizer_that_transformers_takes_for_the_folder(
    named: str | None, model_type: str | None, test_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((test_data / "stories260k" / "tokenizer.json").read_bytes())
    settings = json.loads((test_data / "stories260k" / "tokenizer_config.json").read_text())
    config = json.loads((test_data / "stories260k" / "config.json").read_text())
    config.pop("model_type")
    settings.pop("tokenizer_class")
    settings |= {"tokenizer_class": named} if named else {}
    config |= {"model_type": model_type} if model_type else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 1}))
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    found = Tokenizer(tmp_path)._tokenizer
    assert type(found) is type(expected)
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert (found.bos_token, found.eos_token, found.pad_token, found.init_kwargs) == (
        *(expected.bos_token, expected.eos_token, expected.pad_token, expected.init_kwargs),
    )
