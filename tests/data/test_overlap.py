"""Prompts that are held out, too, and rows that come twice are counted, told, and left out where asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands.build import read_tokenizer
from rs_aligner.commands.run_data import read_pair_data, read_rs_data, read_sft_data
from rs_aligner.config import TrainRewardModelConfig, TrainRSConfig, TrainSFTConfig
from rs_aligner.data import Origins, held_apart
from rs_aligner.data.overlap import normalised
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(60)
TRAIN = "model.data.data_prefix.train"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("overlap") / "policy")


@pytest.fixture
def config(policy: Path, tmp_path: Path) -> Callable[..., Any]:
    """A config of a command, with rows as its files; `rs` is its `model.rs`."""

    def write(name: str, rows: list[dict[str, Any]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    def make(
        kind: Any,
        train: list[dict[str, Any]],
        validation: list[dict[str, Any]],
        overlap: str = "warn",
        anchors: list[dict[str, Any]] | None = None,
        scored: list[dict[str, Any]] | None = None,
        **data: Any,
    ) -> Any:
        rs: dict[str, Any] = {"length_params": {"max_length": 8}}
        if anchors is not None:
            rs["objective"] = {"anchor": {"files": [write("anchors.jsonl", anchors)], "share": 0.5}}
        if scored is not None:
            rs["offline"] = [write("scored.jsonl", scored)]
        model: dict[str, Any] = {
            "data": {
                "data_prefix": {
                    "train": [write("train.jsonl", train)] if train else [],
                    "validation": [write("held_out.jsonl", validation)] if validation else [],
                },
                "overlap": overlap,
                **data,
            }
        }
        if kind is TrainRSConfig:
            model["rs"] = rs
        if kind is TrainSFTConfig:
            model["sft"] = rs
        judge = {"judge": {"name": "exact_answer"}} if kind is TrainSFTConfig else {}
        return kind.model_validate(
            {
                **judge,
                "exp_manager": {"explicit_log_dir": str(tmp_path / "run")},
                "pretrained_checkpoint": {"restore_from_path": str(policy)},
                "model": model,
            }
        )

    return make


def texts(*values: str) -> list[dict[str, Any]]:
    return [{"text": value} for value in values]


def read(kind: Any, config: Any) -> Any:
    readers = {
        TrainRSConfig: read_rs_data,
        TrainSFTConfig: read_sft_data,
        TrainRewardModelConfig: read_pair_data,
    }
    return readers[kind](config, *read_tokenizer(config))


def test_case_white_space_and_composed_letters_make_no_other_prompt() -> None:
    assert normalised("  What IS\n 3 + 5?\t") == normalised("what is 3 + 5?")
    assert normalised("caf\u00e9") == normalised("CAFE\u0301")
    assert normalised("STRASSE") == normalised("stra\u00dfe")


@pytest.mark.parametrize(("one", "other"), [("3+5", "3-5"), ("x\u00b2", "x2"), ("5!", "5"), ("a b", "ab")])
def test_a_sign_makes_another_prompt(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def test_prompts_that_are_held_out_are_told_with_the_first_pair(
    config: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(TrainRSConfig, texts("a", "The Sea", "b", "c", "d"), texts("x", "the  sea", "d", "d "))
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        data = read(TrainRSConfig, made)
    assert [prompt.text for prompt in data.prompts] == ["a", "The Sea", "b", "c", "d"]
    found = next(line for line in caplog.messages if "validation prompt" in line)
    assert found.startswith(f"{TRAIN}: 2 of 5 rows have a validation prompt (1 to the letter, 1 but for case")
    assert f"the first: {tmp_path}/train.jsonl:2 and {tmp_path}/held_out.jsonl:2" in found
    assert "model.data.overlap=drop" in found


def test_drop_leaves_them_out_of_training_and_never_out_of_validation(config: Callable[..., Any]) -> None:
    made = config(TrainRSConfig, texts("a", "SEA", "b", "d"), texts("x", "sea", "d"), "drop")
    data = read(TrainRSConfig, made)
    assert [prompt.text for prompt in data.prompts] == ["a", "b"]
    assert [prompt.text for prompt in data.validation] == ["x", "sea", "d"]


def test_refuse_ends_the_run_with_both_places(config: Callable[..., Any], tmp_path: Path) -> None:
    made = config(TrainRSConfig, texts("a", "SEA", "b"), texts("x", "sea"), "refuse")
    with pytest.raises(ValueError, match="1 of 3 rows have a validation prompt") as error:
        read(TrainRSConfig, made)
    for part in ("train.jsonl:2 and ", "held_out.jsonl:2", "set model.data.overlap to drop or warn"):
        assert part in str(error.value)


def test_dropping_everything_is_an_error(config: Callable[..., Any]) -> None:
    made = config(TrainRSConfig, texts("a"), texts("A"), "drop")
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        read(TrainRSConfig, made)


@pytest.mark.parametrize("overlap", ["warn", "drop", "refuse"])
def test_sets_apart_are_left_as_they_are_without_a_word(
    config: Callable[..., Any], caplog: pytest.LogCaptureFixture, overlap: str
) -> None:
    made = config(TrainRSConfig, texts("a", "b"), texts("c", "d"), overlap)
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        data = read(TrainRSConfig, made)
    assert (len(data.prompts), len(data.validation)) == (2, 2)
    assert caplog.messages == []


def test_what_is_compared_is_the_text_as_fed_to_the_model(config: Callable[..., Any]) -> None:
    rows = [{"q": "one", "id": "r1"}, {"q": "two"}], [{"q": "ONE", "answer": "1"}]
    made = config(TrainRSConfig, *rows, "drop", prompt_template="Q: {q}\nA:")
    assert [prompt.text for prompt in read(TrainRSConfig, made).prompts] == ["Q: two\nA:"]


def test_rows_with_answers_are_looked_at_by_their_prompts(
    config: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": prompt, "response": "yes"} for prompt in ("a", "b", "c")]
    held_out = texts("B")
    (kept, validation, _) = read(TrainSFTConfig, config(TrainSFTConfig, rows, held_out, "drop"))
    assert (len(kept), len(validation)) == (2, 1)
    pairs = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in ("a", "b", "c")]
    held_out = [{"prompt": "c", "chosen": "fine", "rejected": "bad"}]
    made = config(TrainRewardModelConfig, pairs, held_out, "drop")
    (kept, validation, _) = read(TrainRewardModelConfig, made)
    assert (len(kept), len(validation)) == (2, 1)
    assert f"{TRAIN}: 1 of 3 rows have a validation prompt" in caplog.text


def test_anchors_and_scored_rollouts_are_trained_on_and_looked_at_too(config: Callable[..., Any]) -> None:
    anchors = [{"prompt": prompt, "response": "yes"} for prompt in ("a", "b")]
    data = read(TrainRSConfig, config(TrainRSConfig, texts("x"), texts("B"), "drop", anchors=anchors))
    assert len(data.anchors) == 1
    with pytest.raises(ValueError, match=r"model\.rs\.objective\.anchor\.files: 1 of 2"):
        read(TrainRSConfig, config(TrainRSConfig, texts("x"), texts("B"), "refuse", anchors=anchors))
    scored = [{"text": text, "responses": ["yes"], "rewards": [1.0]} for text in ("a", "b", "c")]
    data = read(TrainRSConfig, config(TrainRSConfig, [], texts("B"), "drop", scored=scored))
    assert [group.prompt.text for group in data.scored] == ["a", "c"]
    with pytest.raises(ValueError, match=r"model\.rs\.offline: 1 of 3 .*scored\.jsonl:2"):
        read(TrainRSConfig, config(TrainRSConfig, [], texts("B"), "refuse", scored=scored))


def test_prompts_that_come_twice_are_counted_and_stay(
    config: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(TrainRSConfig, texts("a", "b", "A ", "a", "c"), texts("x", "y", "x"))
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        data = read(TrainRSConfig, made)
    assert (len(data.prompts), len(data.validation)) == (5, 3)
    held_out, train = caplog.messages
    file = tmp_path / "train.jsonl"
    assert train.startswith(f"{file}: 2 of 5 prompts stand there already")
    assert f"the first: {file}:1 and {file}:3" in train
    assert held_out.startswith(f"{tmp_path}/held_out.jsonl: 1 of 3 prompts")


@pytest.mark.parametrize("kind", [TrainSFTConfig, TrainRewardModelConfig])
def test_another_answer_to_a_prompt_is_no_duplicate(
    config: Callable[..., Any], caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    answers = ("yes", "no", "yes")
    rows = [{"prompt": "a", "response": answer, "chosen": answer, "rejected": "?"} for answer in answers]
    with caplog.at_level(logging.WARNING, "rs_aligner"):
        read(kind, config(kind, rows, []))
    (line,) = caplog.messages
    assert "1 of 3 " in line
    assert "train.jsonl:1 and " in line


def test_the_cost_grows_with_the_number_of_prompts_only() -> None:
    """Looking at every pair of 40,000 prompts would take longer than a test may."""

    def origins(first: int) -> Origins:
        found = Origins()
        for number in range(first, first + 40_000):
            found.add(f"f:{number}", f"What is {number} times {number}? " * 5)
        return found

    train, held_out = origins(0), origins(39_999)
    assert len(held_apart("key", train, held_out, "drop")) == 39_999
