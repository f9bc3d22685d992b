"""A selector is added by its section, its class and their two lines; nothing else has to know of it.

The package is copied, the files that docs/extending.md names are changed there, and a process of its own uses
them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SECTION = '''
class ShortestConfig(SelectorSection):
    """The shortest responses of each prompt, half of them at most."""

    name: Literal["shortest"]
    least: Count = 1
    """How many stay where half of them are fewer."""
    most: Count = 2
    """How many of a prompt."""

    def in_words(self) -> str:
        return f"the {self.most} shortest"

    def keeps(self, left: Most) -> Most:
        return Most(min(left.each, self.most), left.whole)

    def beyond(self, key: str, bound: str, most: int) -> Iterator[str]:
        if self.most > most:
            yield problem(f"{key}.most", self.most, f"should be at most {bound} = {most}")

    def problems(self, key: str) -> Iterator[str]:
        if self.least > self.most:
            yield problem(f"{key}.least", self.least, f"should be at most {key}.most = {self.most}")


'''
SELECTOR = '''
"""The shortest responses."""

from rs_aligner.rollout import Group
from rs_aligner.selection.base import GroupSelector, Places, Progress


class Shortest(GroupSelector):
    """The shortest responses of each prompt."""

    reason = "too long beside the others"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        order = sorted(left, key=lambda place: (len(group.rollouts[place].token_ids), place))
        return order[: min(self.most, max(self.least, len(left) // 2))]
'''
CHANGES = {
    "config/selection.py": {
        "SelectorConfig = Annotated[\n": f"{SECTION}SelectorConfig = Annotated[\n",
        "    | PessimisticConfig,\n": "    | PessimisticConfig\n    | ShortestConfig,\n",
    },
    "selection/chain.py": {
        "        _row(conf.DiverseConfig, ": (
            "        _row(conf.ShortestConfig, lambda c, _: shortest.Shortest(c.least, c.most)),\n"
            "        _row(conf.DiverseConfig, "
        ),
        "distinct, filters, pessimistic\n": "distinct, filters, pessimistic, shortest\n",
    },
}
PROGRAM = """
from rs_aligner.config import ConfigError, TrainRSConfig, load_config, plan
from rs_aligner.config.tree import tree_of
from rs_aligner.rollout import Group, Prompt, Rollout, Score
from rs_aligner.selection import Progress, build_chain

def read(**keys):
    return load_config(tree_of({
        "exp_manager.explicit_log_dir": "run",
        "pretrained_checkpoint.restore_from_path": "policy",
        "model.data.data_prefix.train": "prompts.jsonl",
        "model.rs.selection": [{"name": "truncated"}, {"name": "shortest", **keys}],
    }), TrainRSConfig)

def told(**keys):
    try:
        read(**keys)
    except ConfigError as error:
        print(error)

config = read()
print(next(line for line in plan(config).splitlines() if line.startswith("kept a step")))
told(most=9)
told(least=3)
told(mots=3)
chain = build_chain(config.model.rs.selection, top_n=1)
rollouts = [Rollout(0, n, (1,) * size, "", "stop", 0) for n, size in enumerate((4, 1, 3, 2))]
groups = [Group(Prompt("p", "", (1,)), rollouts, [Score(0.0)] * 4)]
selection = chain.select(groups, Progress(1, 1))
print(selection.keep.tolist(), selection.reason_counts())
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_selector_is_a_section_a_class_and_a_line_for_each(tmp_path: Path) -> None:
    package = tmp_path / "rs_aligner"
    shutil.copytree(ROOT / "rs_aligner", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, places in CHANGES.items():
        text = (package / name).read_text()
        for before, after in places.items():
            assert text.count(before) == 1, f"{name} has no {before!r}"
            text = text.replace(before, after)
        (package / name).write_text(text)
    (package / "selection" / "shortest.py").write_text(SELECTOR)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    (tmp_path / "policy" / "model.safetensors").touch()
    (tmp_path / "prompts.jsonl").write_text('{"text": "Once"}\n')
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "kept a step             at most 1,024 (not truncated, then the 2 shortest)",
        "model.rs.selection.1.most is 9: should be at most model.rs.num_rollouts_per_prompt = 4",
        "model.rs.selection.1.least is 3: should be at most model.rs.selection.1.most = 2",
        "model.rs.selection.1.mots is not a key; the nearest one is model.rs.selection.1.most",
        "[[False, True, False, True]] {'rejected/not_scored': 0, 'rejected/truncated': 0, "
        "'rejected/too_long_beside_others': 2}",
    ]
