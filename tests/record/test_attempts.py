"""The starts of a run: what is kept of each, what is compared, and what stops."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from rs_aligner.config import TrainRSConfig
from rs_aligner.config.changes import PARTS, settings_of
from rs_aligner.record.attempts import Attempt, ChangedSettings, compare, latest

FOUND = dict.fromkeys(PARTS, "0123456789abcdef")


def attempt(changes: dict[str, Any] | None = None, **more: Any) -> Attempt:
    tree = {
        "exp_manager": {"explicit_log_dir": "runs/first"},
        "pretrained_checkpoint": {"restore_from_path": "policy"},
        "model": {"data": {"data_prefix": {"train": ["prompts.jsonl"]}}},
    }
    leaves = {**settings_of(TrainRSConfig.model_validate(tree)), **(changes or {})}
    made: dict[str, Any] = {
        "found": FOUND,
        "planned": {"steps": 4, "optimizer_steps": 40},
        "number": 3,
        **more,
    }
    return Attempt(leaves, **made)


def refused(old: Attempt, new: Attempt, allow: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ChangedSettings) as error:
        compare(old, new, Path("runs/first"), allow)
    return str(error.value).splitlines()


def test_an_attempt_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = attempt({"model.data.prompt_template": "Frage: {q}\n\u2028\x85é"}, seen={"device": "cpu"})
    one.write(tmp_path / "config")
    assert latest(tmp_path / "config", []) == one
    assert one.versions["python"]
    assert one.versions["torch"]
    replace(one, number=12).write(tmp_path / "config")
    found = latest(tmp_path / "config", [])
    assert found is not None
    assert found.number == 12


@settings(max_examples=30)
@given(
    st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.integers() | st.lists(st.text()))
)
def test_whatever_a_config_holds_is_kept(
    tmp_path_factory: pytest.TempPathFactory, held: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    one = attempt({"remote_rm.judge.kwargs": held}, given=held)
    one.write(folder / "config")
    assert latest(folder / "config", []) == one


def test_the_same_again_goes_on_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert compare(attempt(), attempt(), Path("runs/first"), []) == []
    assert caplog.text == ""


def test_what_would_mix_two_runs_is_listed_with_the_keys_that_allow_it() -> None:
    new = attempt(
        {"model.optim.lr": 2e-6, "model.rs.sampling_params.temperature": 0.7, "trainer.devices": 4},
        found={**FOUND, "the judge": "fedcba9876543210"},
    )
    lines = refused(attempt(), new)
    assert lines == [
        "exp_manager.explicit_log_dir=runs/first: attempt 3 of this run had other settings "
        "(config/attempt_03.yaml), and going on would mix two runs:",
        f"  model.optim.lr: {attempt().settings['model.optim.lr']} -> 2e-06",
        "  model.rs.sampling_params.temperature: 1.0 -> 0.7",
        "  remote_rm: the judge: 0123456789abcdef -> fedcba9876543210 (under the same name)",
        "set them back, choose another folder, or let them change: exp_manager.allow_changes="
        "[model.optim.lr,model.rs.sampling_params.temperature,remote_rm]",
    ]


@pytest.mark.parametrize(
    ("allow", "left"),
    [
        (["model.optim.lr"], ["  remote_rm"]),
        (["model.optim"], ["  remote_rm"]),
        (["remote_rm"], ["  model.optim.lr"]),
        (["model.optim.l", "model.optim.lr.x", "remote"], ["  model.optim.lr", "  remote_rm"]),
    ],
)
def test_only_what_is_named_may_change(allow: list[str], left: list[str]) -> None:
    new = attempt({"model.optim.lr": 2e-6}, found={**FOUND, "the judge": "fedcba9876543210"})
    lines = refused(attempt(), new, allow)
    assert [line.partition(":")[0] for line in lines[1:-1]] == left


@pytest.mark.parametrize("allow", [["model.optim.lr", "remote_rm"], ["all"]])
def test_what_is_allowed_goes_on_with_a_warning(allow: list[str], caplog: pytest.LogCaptureFixture) -> None:
    new = attempt({"model.optim.lr": 2e-6}, found={**FOUND, "the judge": "fedcba9876543210"})
    assert compare(attempt(), new, Path("runs/first"), allow) == ["model.optim.lr", "remote_rm"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "lets this change: model.optim.lr:" in caplog.text


def test_a_moved_file_is_harmless_and_another_one_under_the_old_name_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moved = attempt({"model.data.data_prefix.train": ["elsewhere/prompts.jsonl"]})
    with caplog.at_level(logging.INFO):
        assert compare(attempt(), moved, Path("runs/first"), []) == []
    assert "harmless: model.data.data_prefix.train" in caplog.text
    other = {**FOUND, "the data to train on": "fedcba9876543210"}
    [line] = refused(attempt(), attempt(found=other))[1:-1]
    assert line.endswith("the data to train on: 0123456789abcdef -> fedcba9876543210 (under the same name)")
    [line] = refused(attempt(), replace(moved, found=other))[1:-1]
    assert 'fedcba9876543210 (["prompts.jsonl"] -> ["elsewhere/prompts.jsonl"])' in line
    read_otherwise = attempt({"model.data.prompt_template": "Q: {q}"}, found=other)
    [line] = refused(attempt(), read_otherwise)[1:-1]
    assert '(model.data.prompt_template: null -> "Q: {q}")' in line


def test_a_longer_run_goes_on_and_its_schedule_is_told(caplog: pytest.LogCaptureFixture) -> None:
    longer = attempt({"trainer.rs.max_steps": 8}, planned={"steps": 8, "optimizer_steps": 80})
    with caplog.at_level(logging.INFO):
        assert compare(attempt(), longer, Path("runs/first"), []) == []
    assert caplog.messages == [
        "the run's length is another one: trainer.rs.max_steps: -1 -> 8; from here on the learning rate's "
        "course is of 80 optimizer steps, and was of 40"
    ]


def test_other_packages_and_another_decoder_are_told_and_stop_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = attempt(seen={"kernels": "a"})
    old.versions["torch"] = "1.0"
    assert compare(old, attempt(seen={"kernels": "b"}), Path("runs/first"), []) == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "torch 1.0 -> " in caplog.messages[0]
    assert "kernels a -> b" in caplog.messages[1]


def test_fingerprints_tell_what_was_sampled_from_what_was_learnt_from_it() -> None:
    base = attempt()
    free = attempt(
        {"trainer.devices": 4, "exp_manager.name": "x", "pretrained_checkpoint.restore_from_path": "y"}
    )
    assert free.fingerprint == base.fingerprint
    for learnt in (
        attempt({"model.optim.lr": 2e-6}),
        attempt(found={**FOUND, "the supervised rows": "f"}),
        attempt(planned={"steps": 8, "optimizer_steps": 80}),
    ):
        assert learnt.of_rollouts == base.of_rollouts
        assert learnt.fingerprint != base.fingerprint
    for sampled in (
        attempt({"model.rs.length_params.max_length": 9}),
        attempt(found={**FOUND, "the judge": "f"}),
        attempt(found={**FOUND, "the model folder": "f"}),
    ):
        assert sampled.of_rollouts != base.of_rollouts


def test_without_any_attempt_nothing_is_compared_only_where_everything_may_change(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no attempt_01.yaml .*allow_changes=\[all\]"):
        latest(tmp_path / "config", ["model.optim.lr"])
    assert latest(tmp_path / "config", ["all"]) is None
