"""What a command says of arguments that Hydra would not understand, and what `plan` and `check` need."""

from __future__ import annotations

from pathlib import Path

import pytest

from rs_aligner.cli import help as helps
from rs_aligner.cli.arguments import Arguments, check_config, read
from rs_aligner.cli.configured import conf_folder
from rs_aligner.cli.main import main
from rs_aligner.config import ConfigError, TrainRSConfig


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config-nane", "mine"], "--config-nane is no option; did you mean --config-name?"),
        (["--model.optim.lr=3"], "keys are set without dashes: model.optim.lr=3"),
        (["model.seed"], "'model.seed' sets nothing: write KEY=VALUE, e.g. model.seed=VALUE"),
        (["seed"], "e.g. model.seed=VALUE"),
        (["model.rs.selection=[{a:"], "model.rs.selection=[{a: cannot be read as KEY=VALUE"),
        (["--config-name"], "--config-name needs a value"),
    ],
)
def test_what_hydra_would_not_understand_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(arguments, TrainRSConfig)
    [line] = str(refused.value).splitlines()
    assert said in line


def test_options_are_taken_apart_as_hydra_does() -> None:
    given = ["-cn", "a", "model.seed=1", "--config-dir=x", "--config-na", "b", "-m", "~model.rs", "+new=2"]
    options = {"--config-name": "b", "--config-dir": "x"}
    assert read(given, TrainRSConfig) == Arguments(options, ("model.seed=1", "~model.rs", "+new=2"), ("-m",))


def test_a_config_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train_rs, _self_]\n")
    folders = [conf_folder(), tmp_path]
    for name in ("mine", "mine.yaml", "recipes/raft", "train_rs"):
        check_config(Arguments({}, ()), name, folders)
    with pytest.raises(ConfigError, match=r"no recipes/rft\.yaml in .*; the nearest is recipes/raft"):
        check_config(Arguments({}, ()), "recipes/rft", folders)
    check_config(Arguments({}, ("hydra.searchpath=[file:///elsewhere]",)), "hidden", folders)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_config(Arguments({}, ()), "mine", [tmp_path / "nowhere"])


@pytest.mark.parametrize("command", helps.OF)
def test_help_has_three_examples_and_says_where_the_keys_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.count(f"\n  rs-aligner {command}") + told.count("\n  rs-aligner serve judge.name=meg") >= 3
    for part in (f"{helps.OF[command].config}.yaml", "docs/config.md", "recipes/raft", str(conf_folder())):
        assert part in told
    assert max(map(len, told.splitlines())) <= 120


@pytest.mark.parametrize("ahead", ["plan", "check"])
def test_plan_and_check_stand_before_a_command(ahead: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([ahead, "--help"]) == 0
    assert f"rs-aligner {ahead} train" in capsys.readouterr().out
    assert main([ahead, "trian"]) == 2
    assert capsys.readouterr().err.endswith("'trian' is none; did you mean train?\n")
