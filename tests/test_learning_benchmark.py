"""The recipes of the learning benchmark, and that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import learning
from rs_aligner.config import TrainRSConfig, load_config
from rs_aligner.config.tree import tree_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("recipe", learning.STORIES)
def test_every_recipe_of_the_stories_can_run(
    recipe: str, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "DATA", test_data)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    config = load_config(tree_of(learning.story_config(recipe, 3, tmp_path)), TrainRSConfig)
    assert config.model.seed == 3
    assert config.trainer.rs.max_steps == learning.STORIES[recipe][1][-1]


def test_anchors_are_whole_stories_that_nothing_is_measured_on(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "DATA", test_data)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from benchmarks.measuring import held_out_stories

    rows = [json.loads(line) for line in learning.write_anchors(tmp_path).read_text().splitlines()]
    stories = {row["prompt"] + row["response"] for row in rows}
    lines = (test_data / "tinystories" / "stories.jsonl").read_text().splitlines()
    assert stories <= {json.loads(line)["text"] for line in lines}
    assert not stories & set(held_out_stories(test_data))


def test_the_random_control_looks_at_no_reward_and_favours_no_place() -> None:
    chosen: Counter[int] = Counter()
    for number in range(4000):
        responses = [f"{number} {place}" for place in range(4)]
        one, other = (
            learning.at_random("p", responses, rewards, {}) for rewards in ([0.0] * 4, [1.0, 2, 3, 4])
        )
        assert one == other
        assert sum(one) == 1
        chosen[one.index(True)] += 1
    assert (
        sum((chosen[place] - 1000) ** 2 / 1000 for place in range(4)) < 16.3
    )  # chi-squared, 3 degrees, 0.1 %


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recipe_is_trained_and_measured(test_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "learning.py"), "stories"]
    command += ["--only", "plain_hasty", "--seeds", "1", "--out", str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RS_ALIGNER_TEST_DATA": str(test_data)}
    told = subprocess.run(
        [*command, "--results", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    course = json.loads((tmp_path / "learning_stories.json").read_text())["plain_hasty"]["course"]
    assert [row["step"] for row in course] == [0, 1, 2, 3, 4]
    tokens = [row["generated_tokens"]["mean"] for row in course]
    assert tokens == sorted(set(tokens))
    assert course[-1]["held_out_score"]["mean"] > course[0]["held_out_score"]["mean"] + 0.2
    assert course[0]["drift"]["mean"] == 0 < course[-1]["drift"]["mean"]
