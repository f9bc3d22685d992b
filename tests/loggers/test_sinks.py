"""TensorBoard, W&B, trackio and MLflow: figures, histograms, settings, and texts only where they may go."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from rs_aligner.config import ExpManagerConfig
from rs_aligner.loggers.chosen import Harmless, chosen, hyperparameters
from rs_aligner.loggers.tensorboard import TensorBoard
from rs_aligner.loggers.wandb import wandb_settings
from rs_aligner.record.sinks import ShowsRollouts, TakesSettings
from tests.fake_run import FakeRun
from tests.loggers.samples import SECRET, of_look, of_step
from tests.loggers.wandb_files import wandb_history, wandb_records

SETTINGS = {"model.optim.lr": 1e-5, "model.rs.selection": [{"name": "topk"}], "model.seed": 7, "x.y": None}


def tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    return events


def text_of(events: EventAccumulator, tag: str) -> str:
    return str(events.Tensors(tag)[-1].tensor_proto.string_val[0].decode())


def test_a_runs_histograms_in_tensorboard_are_of_its_ledger(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.logger = TensorBoard(tmp_path / "logs")  # type: ignore[assignment]  # in the fake one's place
    run.start(steps=2, interval=2)
    events = tensorboard(tmp_path / "logs")
    assert {e.step for e in events.Histograms("distribution/reward")} == {1, 2}
    for step in (1, 2):
        rewards = [row.reward for row in run.ledger.read(step) if row.reward is not None]
        [found] = [e for e in events.Histograms("distribution/reward") if e.step == step]
        assert found.histogram_value.num == len(rewards) >= 8
        assert found.histogram_value.sum == pytest.approx(sum(rewards))
        [kept] = [e for e in events.Histograms("distribution/kept_reward") if e.step == step]
        [row] = [row for row in run.rows if row["step"] == step]
        assert kept.histogram_value.num == row["rollouts/kept"]
        assert kept.histogram_value.sum / kept.histogram_value.num == pytest.approx(row["reward/kept_mean"])
    looks = {e.step: e.histogram_value for e in events.Histograms("distribution/validation_reward")}
    assert looks.keys() == {0, 2}
    for step, look in looks.items():
        [row] = [row for row in run.rows if row["step"] == step]
        assert look.sum / look.num == pytest.approx(row["validation/reward"])


def test_a_step_that_is_trained_again_is_not_shown_twice(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.start(steps=3, interval=None, save_interval=1)
    (tmp_path / "checkpoints" / "step_000003" / "state.json").unlink()
    (tmp_path / "checkpoints" / "step_000003").rmdir()
    run.logger = TensorBoard(tmp_path / "logs")  # type: ignore[assignment]  # in the fake one's place
    run.start(steps=4, interval=None, save_interval=1)
    steps = [e.step for e in tensorboard(tmp_path / "logs").Histograms("distribution/reward")]
    assert steps == [4]


def test_what_a_model_writes_is_plain_text_in_tensorboard(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.log_rollouts(of_step(), 1)
    board.log_rollouts(of_look(), 1)
    board.finalize("success")
    events = tensorboard(tmp_path)
    table = text_of(events, "samples/rollouts/text_summary")
    lines = table.splitlines()
    assert len(lines) == 2 + 4  # two prompts, a kept and a rejected answer each
    assert all(line.replace(r"\|", "").count("|") == 9 for line in lines)
    assert "the judge was out" not in table  # the first rejected one of each prompt
    assert "not in the top n" in table
    assert "kept" in lines[2]
    assert " 1 " in lines[2]
    for active in ("<script", "![x](", "**b**", "\x1b", "\u202e", "http://example"):
        assert active not in table
    assert "samples/validation/text_summary" in events.Tags()["tensors"]


def test_the_settings_are_in_the_tab_of_hyperparameters(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.log_hyperparams(SETTINGS)
    assert not list(tmp_path.iterdir())  # a run that ends before its first step leaves no file
    board.log_metrics({"loss": 1.0}, 1)
    board.finalize("success")
    found = tensorboard(tmp_path).summary_metadata[hparams_metadata.SESSION_START_INFO_TAG]
    content = hparams_metadata.parse_session_start_info_plugin_data(found.plugin_data.content).hparams
    assert content["model.optim.lr"].number_value == 1e-5
    assert content["model.rs.selection"].string_value == '[{"name": "topk"}]'
    assert content["x.y"].string_value == "null"


def test_what_is_called_a_secret_is_told_nobody() -> None:
    given = {"judge.kwargs": {"api_key": "sk-1", "n": 2}, "remote_rm.token_file": "a/file", "a.token": None}
    assert hyperparameters(given) == {**given, "judge.kwargs": {"api_key": "(not told)", "n": 2}}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., ExpManagerConfig]:
    return lambda **keys: ExpManagerConfig(
        **{"explicit_log_dir": str(tmp_path / "run"), "create_tensorboard_logger": False, **keys}
    )


def fill(config: ExpManagerConfig, steps: range) -> None:
    [sink] = chosen(config)
    assert isinstance(sink, TakesSettings)
    assert isinstance(sink, ShowsRollouts)
    sink.log_hyperparams(SETTINGS)
    for step in steps:
        sink.log_rollouts(of_step(), step)
        sink.log_rollouts(of_look(), step)
        sink.log_metrics({"loss": 1.0 / step, "validation/reward": 0.5}, step)
    sink.finalize("success")


@pytest.mark.slow
@pytest.mark.parametrize("texts", [False, True])
def test_wandb_has_histograms_and_settings_and_texts_only_if_asked(
    config: Callable[..., ExpManagerConfig],
    tmp_path: Path,
    texts: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    logs = tmp_path / "run" / "logs"
    asked = config(create_wandb_logger=True, wandb_logger_kwargs={"offline": True}, send_rollout_texts=texts)
    fill(asked, range(1, 3))
    history = wandb_history(logs)
    while ("loss", 2) not in history:  # written by a process of W&B's own; the test's time limit ends it
        time.sleep(0.1)
        history = wandb_history(logs)
    assert history["loss", 2] == 0.5
    assert history["distribution/reward/_type", 1] == "histogram"
    assert sum(history["distribution/reward/values", 1]) == 4  # one has no score, one was sampled later
    assert sum(history["distribution/kept_reward/values", 1]) == 2
    records = list(wandb_records(logs))
    settings = {
        item.key or ".".join(item.nested_key): item.value_json
        for record in records
        for update in (record.run.config.update, record.config.update)
        for item in update
    }
    assert any(key.startswith("model") for key in settings)
    holding = [path for path in logs.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert bool(holding) is texts
    assert (("samples/rollouts/_type", 2) in history) is texts
    assert {path.name for path in logs.iterdir()} == {"run_id", "wandb"}


def test_a_run_that_is_gone_on_with_goes_on_there_and_a_copy_is_another(
    config: Callable[..., ExpManagerConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    begun: list[dict[str, Any]] = []

    def begin(**given: Any) -> MagicMock:
        begun.append(given)
        return MagicMock()

    monkeypatch.setattr(wandb, "init", begin)
    for _ in range(2):
        list(chosen(config(create_wandb_logger=True)))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    list(chosen(config(create_wandb_logger=True, explicit_log_dir=str(tmp_path / "copy"))))
    first, again, copied = (one["id"] for one in begun)
    assert first == again != copied
    assert begun[0]["resume"] == "allow"
    assert begun[0]["settings"] == {"console": "off"}


def test_arguments_of_lightnings_logger_are_understood(tmp_path: Path) -> None:
    given = {"project": "p", "offline": True, "save_dir": "x", "version": "7", "log_model": False}
    found = wandb_settings(given, name="n", folder=tmp_path, identity=lambda: "mine", texts=True)
    assert found == {"name": "n", "project": "p", "mode": "offline", "dir": "x", "id": "7", "resume": "allow"}
    with pytest.raises(ValueError, match=r"wandb_logger_kwargs\.log_model: only figures are sent"):
        wandb_settings({"log_model": True}, name="n", folder=tmp_path, identity=str, texts=True)


@pytest.mark.parametrize("package", ["wandb", "mlflow", "trackio"])
def test_a_package_that_is_missing_is_named_before_any_work(
    config: Callable[..., ExpManagerConfig], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(__import__("sys").modules, package, raising=False)
    [said] = config(**{f"create_{package}_logger": True}).problems("exp_manager")
    assert f"exp_manager.create_{package}_logger is true" in said
    assert f"pip install {package}" in said


def test_a_sink_that_fails_is_told_of_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            raise ConnectionError("the server\nis gone")

        def finalize(self, status: str) -> None:
            raise RuntimeError("still gone")

    sink = Harmless(Broken())
    for step in (1, 2):
        sink.log_metrics({"loss": 1.0}, step)
    sink.finalize("success")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["Broken has not got all figures (told once): ConnectionError: the server is gone"]


def test_a_wandb_run_that_cannot_begin_is_one_line_with_the_keys(
    config: Callable[..., ExpManagerConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(
        ValueError, match=r"create_wandb_logger: wandb cannot begin a run: No API key .*OFF|off"
    ):
        list(chosen(config(create_wandb_logger=True)))
