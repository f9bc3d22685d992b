"""A command's config: composed once, to what `hydra.main` would have made, and by that where it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from rs_aligner.cli import compose, configured, scripts
from rs_aligner.cli.main import main

MINE = "defaults: [train_rs, _self_]\nmodel: {seed: 7, rs: {num_rollout_samples: 3}}\n"


class Composed(list[DictConfig]):
    """What the command was given, and how often Hydra composed a config for it."""

    times = 0


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Composed:
    seen, load = Composed(), ConfigLoaderImpl.load_configuration

    def count(*args: Any, **kwargs: Any) -> DictConfig:
        seen.times += 1
        return load(*args, **kwargs)

    def keep(tree: DictConfig) -> None:
        seen.append(tree)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", count)
    monkeypatch.setitem(scripts.SCRIPTS, "train", scripts.SCRIPTS["train"]._replace(run=keep))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my configs" / "deep").mkdir(parents=True)
    (tmp_path / "my configs" / "mine.yaml").write_text(MINE)
    return seen


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model.seed=3", "++model.optim.lr=1e-3", "~model.rs.pool", "+new.key='a, b'", "model.betas=[0.9,1]"],
        ["--config-name", "recipes/raft", "trainer.rs.max_steps=${model.seed}"],
        ["--config-dir", "my configs", "-cn", "mine"],
        ["--config-path", "my configs", "--config-name=mine.yaml"],
        ["--config-path", "my configs", "--config-dir", ".", "--config-name", "mine"],
    ],
    ids=["nothing", "overrides", "a recipe", "a folder", "a path", "a path and a folder"],
)
def test_it_is_composed_once_to_what_hydra_makes_of_it(
    arguments: list[str], composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", *arguments]) == 0
    assert composed.times == 1
    monkeypatch.setattr(compose, "compose_once", lambda *_: None)
    assert main(["train", *arguments]) == 0
    ours, theirs = composed
    assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)
    assert OmegaConf.is_struct(ours) == OmegaConf.is_struct(theirs)


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ("", ["hydra.run.dir=here"]),
        ("", ["--multirun"]),
        ("", ["+at=${hydra:runtime.cwd}"]),
        ("run: {dir: here}", []),
        ("job: {env_set: {A: b}}", []),
        ("job_logging: {root: {handlers: [console]}}", []),
        ("searchpath: [file://elsewhere]", []),
    ],
)
def test_what_asks_something_of_hydra_is_left_to_it(
    section: str, arguments: list[str], composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "my configs" / "mine.yaml").write_text(f"{MINE}hydra: {{{section}}}\n")
    asked: list[Any] = []
    monkeypatch.setattr(configured, "_by_hydra", lambda *args: asked.append(args))
    assert main(["train", "--config-dir", "my configs", "--config-name", "mine", *arguments]) == 0
    assert (len(asked), composed) == (1, [])


def test_a_file_of_the_users_that_is_called_as_one_of_ours_is_left_to_hydra(
    composed: Composed, tmp_path: Path
) -> None:
    (tmp_path / "my configs" / "train_rs.yaml").write_text("own: true\n")
    assert main(["train", "--config-dir", "my configs", "--config-name", "mine"]) == 0
    assert main(["train", "--config-path", "my configs", "--config-name", "mine"]) == 0
    first, second = composed
    assert ("own" in first, "own" in second) == (False, True)  # ours is looked in first, and last


def test_several_runs_are_made_one_after_another(composed: Composed) -> None:
    assert main(["train", "-m", "model.seed=1,2"]) == 0
    assert [tree.model.seed for tree in composed] == [1, 2]


def test_what_cannot_be_composed_is_one_line(capsys: pytest.CaptureFixture[str], composed: Composed) -> None:
    assert main(["train", "model.seed=1,2"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Ambiguous value for argument '++model.seed=1,2'")
    assert main(["train", "~model.nothing"]) == 2
