"""The recipes that ship: each composes with the guide's overrides, and each command of their page."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import ConfigError, TrainRSConfig, load_config
from rs_aligner.config.tree import read_tree
from tests.config.conftest import CONF, POLICY, compose

pytestmark = pytest.mark.timeout(60)

ROOT = CONF.parents[1]
RECIPES = sorted(path.stem for path in (CONF / "recipes").glob("*.yaml"))
ONLINE = [name for name in RECIPES if name != "offline_best_of_n"]
PAGE = (ROOT / "docs" / "recipes.md").read_text()


def commands(text: str) -> list[list[str]]:
    """The arguments of each `train_rs.py` in the bash blocks of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    words = [shlex.split(block.replace("\\\n", " ")) for block in blocks]
    return [line[2:] for line in words if line[:2] == [".venv/bin/python", "examples/train_rs.py"]]


def overrides_of(command: list[str]) -> list[str]:
    return command[2:] if command[0] == "--config-name" else command


@pytest.fixture
def elsewhere(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has what the commands name."""
    policy = workplace / "path" / "to" / "model"
    policy.parent.mkdir(parents=True)
    shutil.move(workplace / "policy", policy)
    (policy / "config.json").write_text(json.dumps({**POLICY, "max_position_embeddings": 4096}))
    (workplace / "gsm8k").mkdir()
    for name in ("gsm8k/train", "gsm8k/test", "my_prompts", "my_held_out_prompts", "scored_answers"):
        shutil.copy(workplace / "train.jsonl", workplace / f"{name}.jsonl")
    (workplace / "runs" / "mine" / "rollouts").mkdir(parents=True)
    monkeypatch.chdir(workplace)
    return workplace


def test_the_page_has_a_command_for_each_recipe_and_the_table_a_row():
    named = [command[1].removeprefix("recipes/") for command in commands(PAGE)]
    assert sorted(named) == RECIPES
    assert len(RECIPES) >= 9
    assert sorted(re.findall(r"^\| `recipes/(\w+)` \|", PAGE, re.MULTILINE)) == RECIPES


@pytest.mark.parametrize("command", commands(PAGE), ids=lambda command: command[1])
def test_the_commands_of_the_page_pass_the_check(command, elsewhere, caplog):
    assert command[0] == "--config-name"
    with caplog.at_level(logging.WARNING, logger="rs_aligner"):
        load_config(compose(command[1], overrides_of(command)), TrainRSConfig)
    told = {record.getMessage() for record in caplog.records}
    assert told <= {"model.data.data_prefix.test has no effect: there is no test pass"}


@pytest.mark.parametrize("name", ONLINE)
def test_each_recipe_composes_with_the_overrides_of_the_guide(name, elsewhere):
    [command] = commands((ROOT / "docs" / "guides" / "one_machine.md").read_text())
    config = load_config(compose(f"recipes/{name}", overrides_of(command)), TrainRSConfig)
    rs = config.model.rs
    assert (rs.num_rollout_samples, rs.num_rollouts_per_prompt, rs.top_n_rollouts) == (64, 8, 1)
    assert config.model.optim.lr == 1e-5
    assert config.model.data.data_prefix.train == ("my_prompts.jsonl",)
    assert config.exp_manager.explicit_log_dir == "runs/mine"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_keys_and_leaves_hydra_as_train_rs_has_it(name):
    import hydra

    with hydra.initialize_config_dir(str(CONF), version_base=None):
        tree = hydra.compose(f"recipes/{name}", ["++model.peft.peft_scheme=none"], return_hydra_config=True)
    assert tree.hydra.output_subdir is None
    assert tree.hydra.run.dir == "."
    assert tree.hydra.job_logging.root.handlers == []
    assert tree.model.peft.peft_scheme == "none"
    assert set(tree) - {"hydra"} == set(compose("train_rs", []))


@pytest.mark.parametrize("name", RECIPES)
def test_python_reads_the_same_recipe_as_hydra(name):
    assert read_tree(CONF / "recipes" / f"{name}.yaml") == compose(f"recipes/{name}", [])


@pytest.mark.parametrize("name", ONLINE)
def test_a_recipe_without_its_files_says_what_to_set(name):
    with pytest.raises(ConfigError) as error:
        load_config(compose(f"recipes/{name}", []), TrainRSConfig)
    assert [line.split(" must be set")[0] for line in error.value.problems] == [
        "exp_manager.explicit_log_dir",
        "model.data.data_prefix.train",
        "pretrained_checkpoint.restore_from_path",
    ]


def test_the_offline_recipe_without_rollouts_says_what_to_set(tree):
    composed = compose("recipes/offline_best_of_n", [])
    composed.merge_with(tree(**{"model.data.data_prefix.train": []}))
    with pytest.raises(ConfigError, match=r"must be set: .*; or model\.rs\.offline, to train on scored rol"):
        load_config(composed, TrainRSConfig)


def test_a_recipe_that_needs_held_out_prompts_says_so(tree):
    composed = compose("recipes/rest_em", [])
    composed.merge_with(tree(**{"model.data.data_prefix.validation": []}))
    with pytest.raises(ConfigError, match=r"trainer\.rs\.patience is 1: needs held-out figures"):
        load_config(composed, TrainRSConfig)


def test_nemo_rs_is_what_train_rs_does_without_a_word(tree):
    """The defaults of `gpt_rs_actor.yaml` are ours, but for the wave and for a rate that fits its own run."""
    found: list[dict[str, Any]] = []
    for name in ("train_rs", "recipes/nemo_rs"):
        composed = compose(name, [])
        composed.merge_with(tree())
        found.append(load_config(composed, TrainRSConfig).model_dump())
    ours, theirs = found
    assert theirs["model"]["rs"].pop("rollout_micro_batch_size") == 8
    assert ours["model"]["rs"].pop("rollout_micro_batch_size") is None
    assert theirs["model"]["optim"].pop("sched") == {
        "name": "CosineAnnealing",
        "warmup_steps": 10,
        "constant_steps": 1000,
        "min_lr": 9e-8,
    }
    assert theirs["model"]["optim"].pop("lr") == 9e-7
    assert ours["model"]["optim"].pop("lr") == 1e-5
    assert set(ours["model"]["optim"].pop("sched").values()) == {"CosineAnnealing", None}
    assert theirs == ours


def test_the_function_on_the_page_keeps_one_answer_for_each_list_of_equations(tmp_path):
    from rs_aligner.users_code import find

    (tmp_path / "equations.py").write_text(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0])
    keep = find("selection", f"{tmp_path / 'equations.py'}:keep")
    responses = ["<<1+1=2>> so 2", "we get <<1 + 1 = 2>>", "<<1+1=2>> <<2*1=2>>", "2", "two"]
    assert keep("?", responses, [1.0] * 5, {}) == [True, False, True, True, False]
