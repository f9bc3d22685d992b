"""docs/extending.md keeps its word: paths and tests are there, and the tests fail for what is half added.

Kinds that have a test module of their own (a selector, a family, an engine, an objective term) have their toy
there; the page says where.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import hydra
import pytest
from omegaconf import OmegaConf

from rs_aligner.config import TrainRSConfig, load_config
from rs_aligner.config.judge import JudgeSource
from rs_aligner.reward.judges import BUILT_IN, load_judge
from rs_aligner.trainers import measure
from tests import test_metrics_page as metrics_page
from tests.config import test_leaves as leaves
from tests.config import test_recipes as recipes
from tests.config.conftest import CONF, tree, workplace  # noqa: F401 (fixtures)
from tests.config.leaf_rows import Row
from tests.config.leaf_table import TABLE
from tests.conftest import ROOT
from tests.fake_run import FakeRun
from tests.reward.judges import test_judges as judges

PAGE = ROOT / "docs" / "extending.md"
LINKED_TESTS = re.compile(r"\[(tests/[\w/]+\.py)\]\([^)]*\): ((?:`test_\w+`(?:, )?)+)")


def table() -> list[list[str]]:
    """The cells of the page's rows."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def named_tests(cell: str) -> list[tuple[str, str]]:
    return [(path, name) for path, names in LINKED_TESTS.findall(cell) for name in re.findall(r"\w+", names)]


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0])
def test_the_paths_and_the_tests_of_a_row_are_there(row: list[str]) -> None:
    kind, touch, fails, shown = row
    paths = re.findall(r"\]\(([^)#]+)\)", " ".join(row))
    assert [path for path in paths if not (PAGE.parent / path).exists()] == []
    assert "](" in touch, f"{kind}: no file to touch"
    for cell in (fails, shown):
        found = named_tests(cell)
        assert found, f"{kind}: {cell!r} names no test"
        assert len(found) == len(re.findall(r"`test_\w+`", cell)), (
            f"{kind}: {cell!r}: a test without its file"
        )
        for path, name in found:
            defined = ast.parse((ROOT / path).read_text()).body
            functions = {node.name for node in defined if isinstance(node, ast.FunctionDef)}
            assert name in functions, f"{kind}: {path} has no {name}"


def test_each_kind_of_change_has_a_row() -> None:
    kinds = {row[0].removeprefix("a ").removeprefix("an ").split(" with ")[0] for row in table()}
    assert {
        "judge",
        "selector",
        "model family",
        "decoding engine",
        "term of the objective",
        "metric",
        "config key",
        "recipe",
    } <= kinds


def shouting(
    prompts: list[str], responses: list[str], metadata: list[dict[str, Any]], *, most: float = 1.0
) -> Sequence[float]:
    """A toy judge: the share of capitals, at most so large."""
    return [min(most, sum(map(str.isupper, text)) / max(len(text), 1)) for text in responses]


def test_a_judge_is_a_function_and_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN, "shouting", shouting)  # the line in load.py
    with pytest.raises(AssertionError, match="shouting"):
        judges.test_the_config_knows_exactly_the_judges_that_there_are()
    with pytest.raises(AssertionError, match="shouting"):
        judges.test_every_judge_is_told_of()

    class Source(JudgeSource):  # the line in config/judge.py
        name: Literal["shouting"] | None = None

    judge = load_judge(Source(name="shouting", kwargs={"most": 0.75}))
    assert judge.score_texts(["", "", ""], ["ABCD", "AbCd", "abcd"], [{}, {}, {}]) == [0.75, 0.5, 0.0]
    with pytest.raises(ValueError, match=r"judge\.name: shouting .*unexpected keyword argument 'least'"):
        load_judge(Source(name="shouting", kwargs={"least": 1}))


def test_a_metric_is_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = measure.proof_metrics

    def proof_metrics(groups: Any, selection: Any, **how: Any) -> dict[str, float]:
        longest = max(len(one.token_ids) for group in groups for one in group.rollouts)
        return {**known(groups, selection, **how), "response_length/max": float(longest)}

    monkeypatch.setattr(measure, "proof_metrics", proof_metrics)
    with pytest.raises(AssertionError, match="response_length/max"):
        metrics_page.test_every_key_of_a_run_is_on_the_page(tmp_path / "without", 1)
    page = tmp_path / "metrics.md"
    page.write_text(f"{metrics_page.PAGE.read_text()}\n| `response_length/max` | tokens of the longest |\n")
    monkeypatch.setattr(metrics_page, "PAGE", page)
    metrics_page.test_every_key_of_a_run_is_on_the_page(tmp_path / "with", 1)
    written = FakeRun(tmp_path / "with" / "run").rows[1:]
    assert written
    assert all(row["response_length/max"] >= row["response_length/mean"] for row in written)


def test_a_key_is_a_field_and_two_rows(monkeypatch: pytest.MonkeyPatch, tree: Any) -> None:  # noqa: F811 (a fixture)
    class WithDial(TrainRSConfig):
        dial: int = 3
        """A toy key."""

    assert WithDial.model_validate({**load_config(tree(), TrainRSConfig).model_dump(), "dial": 4}).dial == 4
    monkeypatch.setitem(leaves.SCHEMAS, "train_rs", WithDial)
    with pytest.raises(AssertionError, match="nothing shows what these keys do: dial"):
        leaves.test_every_leaf_has_a_row_and_every_row_is_a_leafs("train_rs")
    with pytest.raises(AssertionError, match="dial"):
        leaves.test_the_yaml_file_has_every_key_of_the_schema_and_no_other("train_rs")
    base, rows = TABLE["train_rs"]
    monkeypatch.setitem(TABLE, "train_rs", (base, {**rows, "dial": Row(4, "printed")}))
    leaves.test_every_leaf_has_a_row_and_every_row_is_a_leafs("train_rs")
    real = leaves.compose

    def compose(*how: Any) -> Any:
        return OmegaConf.create({**OmegaConf.to_container(real(*how)), "dial": 3})

    monkeypatch.setattr(leaves, "compose", compose)
    leaves.test_the_yaml_file_has_every_key_of_the_schema_and_no_other("train_rs")


def test_a_recipe_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tree: Any) -> None:  # noqa: F811 (a fixture)
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "recipes" / "toy.yaml").write_text(
        "# @package _global_\ndefaults: [/train_rs, _self_]\nmodel: {rs: {top_n_rollouts: 3}}\n"
    )
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base=None):
        composed = hydra.compose("recipes/toy", [])
    composed.merge_with(tree())
    assert load_config(composed, TrainRSConfig).model.rs.top_n_rollouts == 3
    monkeypatch.setattr(recipes, "RECIPES", sorted([*recipes.RECIPES, "toy"]))
    with pytest.raises(AssertionError, match="toy"):
        recipes.test_the_page_has_a_command_for_each_recipe_and_the_table_a_row()
